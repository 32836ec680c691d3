"""The loop with real ranks: resuming, signals, accumulation, clipping, losses that are not finite."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fss.distributed.context import DistributedContext
from fss.tracking.run_dir import RunDir
from tests.support.ranks import on_ranks
from tests.support.toy import Toy
from tests.support.toy_training import ADAMW, train


@pytest.mark.parametrize(("world_size", "optim"), [(1, {}), (3, {}), (1, ADAMW), (2, ADAMW)])
def test_stopping_by_signal_and_resuming_changes_nothing(tmp_path, world_size, optim):
    whole = on_ranks(world_size, _training, str(tmp_path / "whole"), optim)
    first = [out[0] for out in on_ranks(world_size, _stopping, str(tmp_path / "cut"), optim)]
    assert first == [3] * world_size, "every rank stops at the same step boundary"
    rest = on_ranks(world_size, _training, str(tmp_path / "cut"), optim)
    for (_, expected, rows), (done, state, cut_rows) in zip(whole, rest, strict=True):
        assert done == 6
        assert rows == cut_rows
        assert expected.keys() == state.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, state[name]), name
    _, state, rows = whole[0]
    if optim:
        assert {name.split("/")[1] for name in state if name.startswith("optimizer/")} == {
            "exp_avg",
            "exp_avg_sq",
            "step",
        }
        assert state["optimizer/step/0.weight"] == 6
        assert all(row["grad_norm"] > optim["clip_norm"] for row in rows), "the norm before clipping is logged"


def _training(folder: str, optim: dict):
    return train(folder, 6, optim=optim)


def _stopping(folder: str, optim: dict):
    return train(folder, 6, stop_at=2, optim=optim)


def _first_step(folder: str, clip_norm: float | None):
    """The momentum after one step is the gradient that the step took."""
    return train(folder, 1, accumulate=3, optim={"clip_norm": clip_norm, "weight_decay": 0.0})


def test_clipping_is_by_the_global_norm_of_the_averaged_gradient(tmp_path):
    plain, clipped, wide = (
        on_ranks(2, _first_step, str(tmp_path / str(clip_norm)), clip_norm) for clip_norm in (None, 0.1, 1e6)
    )
    (_, expected, [row]), (_, state, [clipped_row]) = plain[0], clipped[0]
    momenta = [name for name in expected if name.startswith("optimizer/momentum_buffer/")]
    norm = torch.cat([expected[name].flatten() for name in momenta]).norm()
    assert row["grad_norm"] == clipped_row["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    assert norm > 0.1
    for name in momenta:
        assert torch.allclose(state[name], expected[name] * 0.1 / norm, rtol=1e-4, atol=1e-8), name
        assert torch.equal(clipped[1][1][name], state[name]), "equal on both ranks"
        assert torch.equal(wide[0][1][name], expected[name]), "a smaller norm is left as it is"


def _accumulating(folder: str, accumulate: int):
    return train(folder, 2, accumulate=accumulate)


def test_accumulation_calls_after_step_once_a_step(tmp_path):
    (_, state, rows), *_ = on_ranks(2, _accumulating, str(tmp_path), 3)
    assert [row["step"] for row in rows] == [1, 2]
    assert state["trained/1.num_batches_tracked"] == 6, "three forwards in each of two steps"
    assert state["replica/copy"].abs().sum() > 0


@pytest.mark.parametrize(("every", "save_every", "stops_after"), [(100, 100, 4), (100, 3, 3), (1, 100, 3)])
def test_all_ranks_stop_after_the_same_step(tmp_path, every, save_every, stops_after):
    """The signal comes while step 2 is computed; the ranks share it in step 3, and read that where they log or save."""
    outcomes = on_ranks(2, _stopping_with, str(tmp_path), every, save_every)
    assert [out[0] for out in outcomes] == [stops_after] * 2
    assert RunDir(tmp_path).checkpoints.joinpath(f"step_{stops_after:08d}").is_dir()


def _stopping_with(folder: str, every: int, save_every: int):
    return train(folder, 6, stop_at=2, every=every, save_every=save_every)


def test_data_are_read_while_the_step_before_is_computed(tmp_path):
    events: list[str] = []
    train(str(tmp_path), 3, accumulate=2, events=events)
    steps = [("read 0", "read 1"), ("compute 0",) * 2, ("read 2", "read 3"), ("compute 1",) * 2]
    assert events == [event for group in (*steps, ("read 4", "read 5"), ("compute 2",) * 2) for event in group]


def _poisoned(folder: str, optim: dict, every: int):
    return train(folder, 6, poison=(2, 1), optim=optim, every=every, save_every=1 if every == 1 else 2)


@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("optim", [{}, ADAMW])
def test_a_loss_that_is_not_finite_is_neither_saved_nor_logged_nor_stepped(tmp_path, optim, every):
    """It names rank, step and keys, and keeps the batch."""
    outcomes = on_ranks(2, _poisoned, str(tmp_path), optim, every)
    assert all("step 3" in text and "rank 1: 2-1-0" in text for text, _ in outcomes)
    evidence = tmp_path / "nonfinite" / "step_00000003_rank_1"
    facts = json.loads((evidence / "facts.json").read_text())
    assert facts["losses"] == ["nan"] and facts["keys"][0] == "2-1-0"
    assert load_file(evidence / "batch_0.safetensors")["x"][0, 0].isnan()
    assert [row["step"] for row in RunDir(tmp_path).rows()] == ([1, 2] if every == 1 else [1])
    saved = sorted(RunDir(tmp_path).checkpoints.glob("step_*"))
    assert saved[-1].name == "step_00000002"
    before = load_file(saved[-1] / "state.safetensors")
    if every == 1:  # else another step has been taken before the host sees it
        for _, state in outcomes:
            for name, tensor in state.items():
                if name.startswith(("optimizer/", "trained/0.")):
                    assert torch.equal(tensor, before[name]), name


def _unreadable(folder: str, step: int, every: int, save_every: int):
    return train(folder, 6, unreadable=(step, 1), every=every, save_every=save_every)


@pytest.mark.parametrize(
    ("step", "every", "save_every"), [(0, 1, 1), (2, 1, 1), (2, 1, 100), (2, 100, 1), (2, 100, 100)]
)
def test_data_that_cannot_be_read_on_one_rank_end_all_of_them(tmp_path, step, every, save_every):
    """The steps that a rank took with older data, in order not to keep the others waiting, leave no trace."""
    outcomes = on_ranks(2, _unreadable, str(tmp_path), step, every, save_every)
    assert [text for text, _ in outcomes] == ["the disk is gone"] * 2
    assert [row["step"] for row in RunDir(tmp_path).rows()] == [*range(1, step + 1)][: None if every == 1 else 1]
    saved = [folder.name for folder in sorted(RunDir(tmp_path).checkpoints.glob("step_*"))]
    assert saved == ([f"step_{done:08d}" for done in range(1, step + 1)] if save_every == 1 else [])


def _overflown(folder: str):
    return train(folder, 1, overflow=True)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The loss was still finite: the next one would not be, and every restart would begin with it."""
    outcomes = on_ranks(2, _overflown, str(tmp_path))
    assert all("0.weight is not finite after step 1, which was not saved" in text for text, _ in outcomes)
    assert not list(RunDir(tmp_path).checkpoints.glob("step_*"))


def _checked(folder: str) -> list[set[str]]:
    """The names of the tensors in each check of two steps, of a method whose copy of the weights were frozen."""
    seen: list[set[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toy, "frozen", ("copy",))
        patch.setattr(DistributedContext, "check_equal", lambda context, named: seen.append(dict(named).keys()))
        patch.setattr(Toy, "after_step", lambda method, context: None)
        train(folder, 2)
    return [set(names) for names in seen]


def test_frozen_networks_are_compared_at_the_first_check_only(tmp_path):
    [(first, *later)] = on_ranks(1, _checked, str(tmp_path))
    assert len(later) == 2
    for names in later:
        assert first - names == {"replica/copy"} and "trained/0.weight" in names
