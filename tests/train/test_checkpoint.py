"""Checkpoints: whole or not there; damage, other methods and a full disk are recognized."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fss.errors import RunError, WeightsError
from fss.methods.base import StepContext
from fss.train.checkpoint import CheckpointConfig, Checkpoints, State
from fss.train.optim import OptimConfig, build_optimizer
from shards.format import temporary_name
from tests.support.toy import Toy, batches


def make_state(steps: int = 0, *, name: str = "toy", size: int = 4) -> State:
    torch.manual_seed(steps)
    method = Toy(size)
    optimizer = build_optimizer(method, OptimConfig(lr=0.1))
    dataset = batches(0, 0, 1, size=size)
    for step in range(steps):
        loss, _ = method.loss(next(dataset), StepContext(step=step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return State(name=name, method=method, optimizer=optimizer)


def saved_by(checkpoints: Checkpoints, state: State, step: int) -> Path:
    """Save, and wait until it is on the disk; the folder of the checkpoint."""
    checkpoints.save(state, step)
    checkpoints.finish()
    return checkpoints._checkpoint(step)


def equal(a: State, b: State) -> bool:
    one, other = a.tensors(), b.tensors()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_saved_state_is_restored(tmp_path, context):
    saved = make_state(3)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), context)
    saved_by(checkpoints, saved, 3)
    expected = torch.rand(5)  # the generator goes on from where it was saved
    torch.rand(100)
    found = make_state(0)
    assert not equal(saved, found)
    assert checkpoints.resume(found) == (3, [])
    assert equal(saved, found)
    assert "optimizer/momentum_buffer/0.weight" in found.tensors()
    assert torch.equal(torch.rand(5), expected)


def test_only_the_newest_stay(tmp_path, context):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2), context)
    for step in (1, 2, 30):
        saved_by(checkpoints, make_state(), step)
    assert checkpoints.steps() == [2, 30]


def test_a_damaged_checkpoint_of_a_later_step_does_not_count_as_one_that_is_kept(tmp_path, context):
    """Else every save after the resume would delete the good ones, down to none."""
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2), context)
    for step in (1, 2):
        saved_by(checkpoints, make_state(), step)
    damaged = saved_by(checkpoints, make_state(), 30)
    (damaged / "state.json").unlink()
    assert checkpoints.resume(make_state())[0] == 2
    saved_by(checkpoints, make_state(), 3)
    assert checkpoints.steps() == [2, 3, 30]


def test_a_save_that_was_cut_short_is_not_a_checkpoint(tmp_path, context):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), context)
    saved_by(checkpoints, make_state(1), 1)
    leftover = temporary_name(tmp_path / "step_00000002")
    shutil.copytree(tmp_path / "step_00000001", leftover)
    step, messages = checkpoints.resume(make_state())
    assert step == 1
    assert "cut short" in messages[0]
    assert not leftover.exists()


@pytest.mark.parametrize("harm", ["half the tensors", "no facts", "one byte"])
def test_a_damaged_checkpoint_is_passed_over_and_kept(tmp_path, context, harm):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), context)
    good = make_state(1)
    saved_by(checkpoints, good, 1)
    folder = saved_by(checkpoints, make_state(2), 2)
    data = (folder / "state.safetensors").read_bytes()
    if harm == "half the tensors":
        (folder / "state.safetensors").write_bytes(data[: len(data) // 2])
    elif harm == "one byte":
        (folder / "state.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        (folder / "state.json").unlink()
    found = make_state()
    step, messages = checkpoints.resume(found)
    assert step == 1 and equal(good, found)
    assert "step_00000002 is damaged" in messages[0]
    assert folder.exists()


def test_nothing_but_damage_is_refused_rather_than_started_again(tmp_path, context):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), context)
    folder = saved_by(checkpoints, make_state(1), 1)
    (folder / "state.json").write_text("{")
    with pytest.raises(WeightsError, match=r"no checkpoint in .* is whole"):
        checkpoints.resume(make_state())


def test_another_method_or_size_is_refused(tmp_path, context):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), context)
    saved_by(checkpoints, make_state(1), 1)
    with pytest.raises(WeightsError, match="of method toy, this run trains prior"):
        checkpoints.resume(make_state(name="prior"))
    with pytest.raises(WeightsError, match="does not fit method toy"):
        checkpoints.resume(make_state(size=5))


def test_a_checkpoint_of_another_format_is_refused(tmp_path, context):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), context)
    folder = saved_by(checkpoints, make_state(1), 1)
    facts = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(WeightsError, match="format 99"):
        checkpoints.resume(make_state())


def test_a_full_disk_while_saving_loses_nothing(small_disk, context):
    disk = small_disk("256k")
    checkpoints = Checkpoints(disk, CheckpointConfig(), context)
    good = make_state(1)
    saved_by(checkpoints, good, 1)
    with pytest.raises(RunError, match=r"cannot save step 2 .* free some space .* checkpoint 1 is whole"):
        saved_by(checkpoints, make_state(2, size=200), 2)
    assert [p.name for p in disk.iterdir()] == ["step_00000001"]
    found = make_state()
    assert checkpoints.resume(found)[0] == 1 and equal(good, found)
