"""The loop with real ranks: resuming, signals, accumulation, clipping, losses that are not finite."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fss.distributed.context import DistributedContext
from fss.errors import RunError
from fss.tracking.log import Log, LogConfig
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import RunInfo
from fss.train import tensor_file
from fss.train.checkpoint import CheckpointConfig, Checkpoints, State
from fss.train.loop import Trainer
from fss.train.optim import OptimConfig, Schedule, build_optimizer
from shards.format import ShardError
from tests.support.contexts import joined
from tests.support.ranks import on_ranks
from tests.support.saves import step_of, writing
from tests.support.toy import Toy, batches

ABOUT = RunInfo(kind="pretrain", config={})


class NoBadSamples:
    def note(self, batch) -> list[str]:
        return []


def train(
    folder: str,
    steps: int,
    *,
    stop_at: int | None = None,
    poison: tuple | None = None,
    unreadable: tuple | None = None,
    accumulate: int = 1,
    overflow: bool = False,
    optim: dict | None = None,
    every: int = 1,
    save_every: int = 100,
    events: list | None = None,
):
    """Train the toy method up to `steps`; with stop_at, a signal reaches rank 0 when it reads the data of that step.

    poison, unreadable: step and rank whose data are not numbers, or cannot be read. overflow: whether gradients are too
    large for float32. optim: more options of the optimizer. every: steps between rows and between checks of equality.
    events: receives what this rank reads and computes. Returns steps, state and rows; of a run that failed the message
    and the state.
    """
    context = joined(accumulate=accumulate)
    run = RunDir(Path(folder))
    context.on_main(lambda: run.open({}, ""))
    torch.manual_seed(0)
    method = Toy()
    if overflow:
        method.trainable[0].weight.register_hook(lambda gradient: gradient * 1e38 * 1e38)
    torch.manual_seed(context.rank)
    options = {"lr": 0.1, "reference_batch_size": 12, "schedule": "constant"} | (optim or {})
    config = OptimConfig(steps=steps, accumulate=accumulate, **options)
    schedule = Schedule(config=config, images=24, batch=12)
    optimizer = build_optimizer(method, config)
    state = State(name="toy", method=method, optimizer=optimizer)
    checkpoints = Checkpoints(run.checkpoints, CheckpointConfig(every=100), context)
    log = Log(run, LogConfig(every=1, wandb="off"), active=context.is_main, about=ABOUT, total=steps, unit="images")
    trainer = Trainer(
        method=method,
        optimizer=optimizer,
        context=context,
        state=state,
        schedule=schedule,
        checkpoints=checkpoints,
        log=log,
        bad_samples=NoBadSamples(),
        nan_dump=run.folder / "nonfinite",
        log_every=every,
        save_every=save_every,
        check_every=every,
    )
    start, _ = checkpoints.resume(state)
    context.on_main(lambda: run.rewind(start))
    data = batches(start, context.rank, context.world_size, accumulate)

    def dataset():
        for index, batch in enumerate(data):
            if stop_at is not None and start + index == stop_at and context.rank == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            if poison == (start + index, context.rank):
                batch.x[0, 0] = float("nan")
            if unreadable == (start + index, context.rank):
                raise ShardError("the disk is gone")
            if events is not None:
                events.append(f"read {start + index}")
            yield batch

    if events is not None:
        method.loss = lambda batch, step: events.append(f"compute {step.step}") or Toy.loss(method, batch, step)
    try:
        done = trainer.run(dataset(), start)
    except (RunError, ShardError) as error:
        return str(error), {name: t.clone() for name, t in state.tensors().items()}
    finally:
        log.close()
        context.close()
    rows = [{k: v for k, v in row.items() if k != "speed"} for row in run.rows()] if context.is_main else None
    return done, {name: t.clone() for name, t in state.tensors().items()}, rows


ADAMW = {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.1, "betas": (0.8, 0.99)}


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


@pytest.mark.parametrize(("save_every", "stops_after"), [(100, 3), (1, 2)])
def test_a_stop_before_a_checkpoint_needs_no_further_step(tmp_path, save_every, stops_after):
    """The signal comes while step 2 is computed, when the data of step 3 are read."""
    outcomes = on_ranks(2, _stopping_often, str(tmp_path), save_every)
    assert [out[0] for out in outcomes] == [stops_after] * 2
    assert [row["step"] for row in RunDir(tmp_path).rows()] == [*range(1, stops_after + 1)]


def _stopping_often(folder: str, save_every: int):
    return train(folder, 6, stop_at=2, save_every=save_every)


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


def _unreadable(folder: str, step: int, save_every: int):
    return train(folder, 6, unreadable=(step, 1), save_every=save_every)


@pytest.mark.parametrize(("step", "save_every"), [(0, 1), (2, 1), (2, 100)])
def test_data_that_cannot_be_read_on_one_rank_end_all_of_them(tmp_path, step, save_every):
    """The step that a rank took with older data, in order not to keep the others waiting, leaves no trace."""
    outcomes = on_ranks(2, _unreadable, str(tmp_path), step, save_every)
    assert [text for text, _ in outcomes] == ["the disk is gone"] * 2
    assert [row["step"] for row in RunDir(tmp_path).rows()] == [*range(1, step + 1)]
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


def _killed(folder: str, optim: dict) -> None:
    """Rank 0 kills itself in the middle of the file of step 4; the other ranks end as they can."""

    def die(path: Path) -> None:
        if step_of(path) == 4 and path.stat().st_size > 1000:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Exception):
        patch.setattr(tensor_file, "PIECE", 100)
        writing(patch, piece=die)
        train(folder, 6, save_every=1, optim=optim)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_process_that_is_killed_in_the_middle_of_a_write_loses_nothing_before_it(tmp_path, world_size):
    whole = on_ranks(world_size, _training, str(tmp_path / "whole"), ADAMW)
    on_ranks(world_size, _killed, str(tmp_path / "cut"), ADAMW, killed=(0,))
    [half] = (tmp_path / "cut" / "checkpoints").glob(".step_00000004.*.tmp/state.safetensors")
    complete = tmp_path / "cut" / "checkpoints" / "step_00000003" / "state.safetensors"
    assert 1000 < half.stat().st_size < complete.stat().st_size
    rest = on_ranks(world_size, _training, str(tmp_path / "cut"), ADAMW)
    for (_, expected, rows), (_, state, cut_rows) in zip(whole, rest, strict=True):
        assert rows == cut_rows
        assert expected.keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())
    assert not half.parent.exists()
