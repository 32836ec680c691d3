"""Trainings of the toy method by the real loop, in a process that is one rank or the only one."""

import os
import signal
from pathlib import Path

import torch

from fss.errors import RunError
from fss.tracking.log import Log, LogConfig
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import RunInfo
from fss.train.checkpoint import CheckpointConfig, Checkpoints, State
from fss.train.loop import Trainer
from fss.train.optim import OptimConfig, Schedule, build_optimizer
from shards.format import ShardError
from tests.support.contexts import joined
from tests.support.toy import Toy, batches

ADAMW = {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.1, "betas": (0.8, 0.99)}
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
