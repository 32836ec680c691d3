"""The loop with real ranks: resuming, signals, accumulation, clipping, losses that are not finite."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from fss.errors import RunError
from fss.tracking.log import Log, LogConfig
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import RunInfo
from fss.train.checkpoint import CheckpointConfig, Checkpoints, State
from fss.train.loop import Trainer
from fss.train.optim import OptimConfig, Schedule, build_optimizer
from tests.support.contexts import joined
from tests.support.ranks import on_ranks
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
    accumulate: int = 1,
    overflow: bool = False,
    optim: dict | None = None,
):
    """Train the toy method up to `steps`; with stop_at, a signal reaches this process's rank 0 during that step.

    poison: step and rank whose data are not numbers. overflow: whether gradients are too large for float32. optim: more
    options of the optimizer.
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
        log_every=1,
        save_every=100,
        check_every=1,
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
            yield batch

    try:
        done = trainer.run(dataset(), start)
    except RunError as error:
        return str(error)
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


def _poisoned(folder: str):
    return train(folder, 6, poison=(2, 1))


def test_a_loss_that_is_not_finite_names_rank_step_and_keys(tmp_path):
    texts = on_ranks(2, _poisoned, str(tmp_path))
    assert all("step 3" in text and "rank 1: 2-1-0" in text for text in texts)
    facts = json.loads((tmp_path / "nonfinite" / "step_00000003_rank_1" / "facts.json").read_text())
    assert facts["losses"] == ["nan"] and facts["keys"][0] == "2-1-0"
    assert [row["step"] for row in RunDir(tmp_path).rows()] == [1, 2], "the step that failed is not logged"


def _overflown(folder: str) -> str:
    return train(folder, 1, overflow=True)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The loss was still finite: the next one would not be, and every restart would begin with it."""
    texts = on_ranks(2, _overflown, str(tmp_path))
    assert all("0.weight is not finite after step 1, which was not saved" in text for text in texts)
    assert not list(RunDir(tmp_path).checkpoints.glob("step_*"))
