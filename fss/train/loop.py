"""The training loop: it runs any method, on any number of ranks, and resumes from the step that was saved last.

The host launches a step and does not wait for the device that computes it: meanwhile it fetches the data of the next
one, and the other ranks report whether to continue. It waits for a value only where one is logged, measured or saved.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fss.data.batch import Batch
from fss.data.loader import BadSamples
from fss.distributed.context import DistributedContext
from fss.distributed.signals import StopRequest
from fss.methods.base import Method, Report, StepContext
from fss.nn.transfer import start_to_host
from fss.tracking.log import Log
from fss.tracking.meter import Meter
from fss.train.checkpoint import Checkpoints, State
from fss.train.loss_guard import LossGuard, check_weights
from fss.train.optim import Schedule, set_learning_rate
from fss.train.prefetch import Prefetcher

Row = dict[str, float]


class Trainer:
    """Trains a method from a step to the last one.

    nan_dump: folder for the batches that led to a loss that is not finite. log_every, save_every, check_every: steps
    between rows of the log, between checkpoints, and between checks that all ranks have equal tensors (0: no checks).
    """

    def __init__(
        self,
        *,
        method: Method,
        optimizer: torch.optim.Optimizer,
        context: DistributedContext,
        state: State,
        schedule: Schedule,
        checkpoints: Checkpoints,
        log: Log,
        bad_samples: BadSamples,
        nan_dump: Path,
        log_every: int,
        save_every: int,
        check_every: int,
    ) -> None:
        self.method = method
        self.context = context
        self.state = state
        self.schedule = schedule
        self.checkpoints = checkpoints
        self.log = log
        self.bad_samples = bad_samples
        self.log_every = log_every
        self.save_every = save_every
        self.check_every = check_every
        self.meter = Meter(context.device)
        self.guard = LossGuard(context, optimizer, nan_dump, log.say)
        self.clip_norm = schedule.config.clip_norm
        self.forward, self.optimizer = context.wrap(method, optimizer, schedule.steps, self.clip_norm)
        state.optimizer = self.optimizer  # the one that steps is the one to save

    def run(
        self,
        batches: Iterator[Batch],
        start: int,
        measure: Callable[[int], object] = lambda done: None,
        due: Callable[[int], bool] = lambda done: False,
    ) -> int:
        """Train from step `start`; returns the number of steps done, fewer than planned if a signal asked to stop.

        batches: micro-batches from `start` on, `accumulate` of them a step. measure: called with the number of steps
        done where `due` is true of it; a process that was asked to stop has no time for it, except after the last step.
        Raises RunError on a loss that is not finite, ShardError if too much of the data cannot be read.
        """
        total = self.schedule.steps
        self._check_equal(self.state.method_tensors())
        with StopRequest().listening() as stop, self.checkpoints.finishing(self.log.say):
            prefetcher = Prefetcher(
                batches,
                accumulate=self.schedule.config.accumulate,
                context=self.context,
                bad_samples=self.bad_samples,
                stop=stop,
                meter=self.meter,
                log=self.log,
            )
            given = prefetcher.fetch(start)
            given.check_readable()
            for step in range(start, total):
                done = step + 1
                logged = done == 1 or done == total or done % self.log_every == 0
                prefetcher.wait_for_copies(given)
                row = self._launch(given.micro_batches, step, logged)
                # While the device computes the step: how its data were read, the losses before it, the data after it.
                given.check_readable()
                stopping = given.stop_requested()
                self.guard.check(before=step)
                last = stopping or done == total
                if not last:
                    given = prefetcher.fetch(done)
                    self.context.report_progress(f"in step {done}")

                saving, measuring = last or done % self.save_every == 0, due(done)
                checking = self.check_every > 0 and done % self.check_every == 0
                if saving or measuring:
                    stopping = given.stop_requested()  # already before the next step, which then is not taken
                if logged or saving or measuring or checking or stopping:
                    self.guard.check(before=done)
                if logged:
                    self._write(done, row())
                self.log.at(done)
                if checking:
                    self._check_equal(self.state.changing_tensors())
                if saving or stopping:
                    self.context.report_progress(f"saving step {done}")
                    check_weights(self.method, self.context, done)
                    self.checkpoints.save(self.state, done)
                if measuring and (not stopping or done == total):
                    self.context.report_progress(f"measuring after step {done}")
                    with self.meter.aside():
                        measure(done)
                if stopping:
                    return done
                if saving or measuring:
                    given.check_readable()
        return total

    def _launch(self, micro_batches: list[Batch], step: int, logged: bool) -> Callable[[], Row]:
        """Launch one optimizer step; the function returned waits for the row to log, empty if the step is not logged.

        micro_batches: of this rank, on the device.
        """
        self.context.report_progress(f"in step {step + 1}")
        losses, reports = [], []
        for batch in micro_batches:
            with self.context.accumulate(self.forward):
                loss, report = self.forward(batch, step, logged)
                self.context.backward(loss)
            losses.append(loss.detach())
            reports.append(report)
        self.guard.skip_nonfinite(step, micro_batches, losses, reports)
        lr = self.schedule.lr(step)
        set_learning_rate(self.optimizer, lr)
        norm = None if self.clip_norm is None else self.context.clip_gradients(self.method, self.clip_norm)
        self.optimizer.step()
        row = self._start_row(step + 1, lr, losses, reports, norm) if logged else dict
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(StepContext(self.context.collectives, step, self.schedule.steps))
        self.meter.step(self.schedule.batch)
        return row

    def _start_row(
        self, done: int, lr: float, losses: list[Tensor], reports: list[Report], norm: Tensor | None
    ) -> Callable[[], Row]:
        """Scalars of this step, averaged over micro-batches and ranks; deterministic, unlike the speed.

        norm: of the gradient before it was clipped; None: the norm of the gradient as it is.
        """
        scalars = {name: torch.stack([report[name].float() for report in reports]).mean() for name in reports[0]}
        means = self.context.start_mean({"loss": torch.stack(losses).mean(), **scalars})
        grad_norm = start_to_host(self.context.grad_norm(self.method, self.optimizer) if norm is None else norm)
        place = {"step": done, "epoch": self.schedule.epoch(done), "lr": lr}
        return lambda: {**place, "grad_norm": grad_norm().item(), **means()}

    def _write(self, done: int, row: Row) -> None:
        self.log.row(row | {"speed": self.meter.read()})
        self.log.distributions(done, self.method.distributions)
        for text in self.method.warnings(done, row):
            self.log.say(f"note: {text}")

    def _check_equal(self, tensors: dict[str, Tensor]) -> None:
        """Raise RunError unless all ranks have the same weights, momentum encoders and queues, bit for bit."""
        self.context.check_equal(tensors.items())
