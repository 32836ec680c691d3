"""The training loop: it runs any method, on any number of ranks, and resumes from the step that was saved last.

The host launches a step and does not wait for the device that computes it: meanwhile it fetches the data of the next
one. What ranks must know of each other comes by the control word of a step (`fss.train.control_words`), which the host
reads after the next one was launched. It waits for the device only where a value is logged, measured or saved.
"""

from collections.abc import Callable, Iterator
from functools import partial
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
from fss.train.control_words import ControlWords
from fss.train.nonfinite import check_weights, fail_nonfinite
from fss.train.optim import Schedule, set_learning_rate
from fss.train.prefetch import Prefetcher, StepInput
from shards.format import ShardError

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
        fail = partial(fail_nonfinite, context=context, folder=nan_dump, say=log.say)
        self.words = ControlWords(context, optimizer, fail)
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
        A stop takes effect one step after it was asked for, or where something is logged, measured or saved.
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
                meter=self.meter,
                log=self.log,
            )
            given = prefetcher.fetch(start)
            self._check_readable(given)
            for step in range(start, total):
                done = step + 1
                logged = done == 1 or done == total or done % self.log_every == 0
                prefetcher.wait_for_copies(given)
                row = self._launch(given, step, stop.asked, logged)
                # While the device computes the step: the word of the one before, and the data of the one after.
                stopping = self.words.stop_requested(before=step)
                if not stopping and done < total:
                    given = prefetcher.fetch(done)
                    self.context.report_progress(f"in step {done}")

                saving, measuring = done == total or done % self.save_every == 0, due(done)
                checking = self.check_every > 0 and done % self.check_every == 0
                if logged or saving or measuring or checking or stopping:
                    stopping = self.words.stop_requested(before=done)
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
        return total

    def _check_readable(self, first: StepInput) -> None:
        """Raise ShardError if a rank could not read the first data: it has none to take a step with. Collective."""
        if self.context.any_rank(first.unreadable is not None)[0]:
            raise ShardError(next(text for text in self.context.gather_objects(first.unreadable) if text))

    def _launch(self, given: StepInput, step: int, stop: bool, logged: bool) -> Callable[[], Row]:
        """Launch one optimizer step; the function returned waits for the row to log, empty if the step is not logged.

        stop: whether this rank was asked to stop, for its control word.
        """
        self.context.report_progress(f"in step {step + 1}")
        losses, reports = [], []
        for batch in given.micro_batches:
            with self.context.accumulate(self.forward):
                loss, report = self.forward(batch, step, logged)
                self.context.backward(loss)
            losses.append(loss.detach())
            reports.append(report)
        self.words.send(step, given.micro_batches, losses, reports, stop=stop, unreadable=given.unreadable)
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
