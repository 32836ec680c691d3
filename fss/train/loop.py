"""The training loop: it runs any method, on any number of ranks, and resumes from the step that was saved last."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fss.data.batch import Batch
from fss.data.loader import BadSamples
from fss.distributed.context import DistributedContext
from fss.distributed.signals import StopRequest
from fss.errors import RunError
from fss.methods.base import Method, Report, StepContext
from fss.tracking.log import Log
from fss.tracking.meter import Meter
from fss.train.checkpoint import Checkpoints, State
from fss.train.optim import Schedule, set_learning_rate
from shards.format import ShardError


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
        self.nan_dump = nan_dump
        self.log_every = log_every
        self.save_every = save_every
        self.check_every = check_every
        self.meter = Meter(context.device)
        self.clip_norm = schedule.config.clip_norm
        self.forward, self.optimizer = context.wrap(method, optimizer, schedule.steps, self.clip_norm)
        state.optimizer = self.optimizer  # the one that steps is the one to save

    def run(self, batches: Iterator[Batch], start: int, after: Callable[[int], object] = lambda done: None) -> int:
        """Train from step `start`; returns the number of steps done, fewer than planned if a signal asked to stop.

        batches: micro-batches from `start` on, `accumulate` of them a step. after: called at the end of every step
        with the number of steps done, for measurements.
        Raises RunError on a loss that is not finite, ShardError if too much of the data cannot be read.
        """
        total = self.schedule.steps
        self._check_equal()
        with StopRequest().listening() as stop:
            for step in range(start, total):
                done = step + 1
                logged = done == 1 or done == total or done % self.log_every == 0
                stopping, row = self._step(batches, step, stop, logged)
                if logged:
                    for text in self.method.warnings(done, row):
                        self.log.say(f"note: {text}")
                self.log.at(done)
                if self.check_every and done % self.check_every == 0:
                    self._check_equal()
                if stopping or done == total or done % self.save_every == 0:
                    self.context.report_progress(f"saving step {done}")
                    self._check_finite(done)
                    self.checkpoints.save(self.state, done)
                if not stopping or done == total:  # a process that was asked to stop has no time for a measurement
                    self.context.report_progress(f"measuring after step {done}")
                    with self.meter.aside():
                        after(done)
                if stopping:
                    return done
        return total

    def _step(self, batches: Iterator[Batch], step: int, stop: StopRequest, logged: bool) -> tuple[bool, dict]:
        """Take one optimizer step; returns whether any rank was asked to stop, and the row that was logged."""
        self.context.report_progress(f"waiting for the data of step {step + 1}")
        micro_batches, unreadable = self._fetch(batches)
        self.context.report_progress(f"in step {step + 1}")
        # One exchange of flags before the forward pass and one after it: no rank stops, saves or fails by itself.
        stopping, refused = self.context.any_rank(stop.asked, unreadable is not None)
        if refused:
            raise ShardError(next(text for text in self.context.gather_objects(unreadable) if text))

        losses, reports = [], []
        for batch in micro_batches:
            with self.context.accumulate(self.forward):
                loss, report = self.forward(batch.to(self.context.device, non_blocking=True), step)
                self.context.backward(loss)
            losses.append(loss.detach())
            reports.append(report)
        finite = bool(torch.isfinite(torch.stack(losses)).all())
        if self.context.any_rank(not finite)[0]:
            self._fail_nonfinite(step, micro_batches, losses, reports)

        lr = self.schedule.lr(step)
        set_learning_rate(self.optimizer, lr)
        norm = None if self.clip_norm is None else self.context.clip_gradients(self.method, self.clip_norm)
        self.optimizer.step()
        row = self._row(step + 1, lr, losses, reports, norm) if logged else {}
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(StepContext(self.context.collectives, step, self.schedule.steps))
        self.meter.step(self.schedule.batch)
        if logged:
            self.log.row(row | {"speed": self.meter.read()})
            self.log.distributions(step + 1, self.method.distributions)
        return stopping, row

    def _fetch(self, batches: Iterator[Batch]) -> tuple[list[Batch], str | None]:
        """The micro-batches of a step; and, if the data cannot be read, the reason."""
        micro_batches: list[Batch] = []
        try:
            for _ in range(self.schedule.config.accumulate):
                with self.meter.waiting():
                    micro_batches.append(next(batches))
                for text in self.bad_samples.note(micro_batches[-1]):
                    self.log.say(text)
        except ShardError as error:
            return micro_batches, str(error)
        return micro_batches, None

    def _row(
        self, done: int, lr: float, losses: list[Tensor], reports: list[Report], norm: Tensor | None
    ) -> dict[str, float]:
        """Scalars of this step, averaged over micro-batches and ranks; deterministic, unlike the speed.

        norm: of the gradient before it was clipped; None: the norm of the gradient as it is.
        """
        means = {name: torch.stack([report[name].float() for report in reports]).mean() for name in reports[0]}
        values = self.context.mean({"loss": torch.stack(losses).mean(), **means})
        grad_norm = self.context.grad_norm(self.method, self.optimizer) if norm is None else norm.item()
        return {"step": done, "epoch": self.schedule.epoch(done), "lr": lr, "grad_norm": grad_norm, **values}

    def _check_equal(self) -> None:
        """Raise RunError unless all ranks have the same weights, momentum encoders and queues, bit for bit."""
        self.context.check_equal(self.state.method_tensors().items())

    def _check_finite(self, done: int) -> None:
        """Raise RunError if a weight is not finite: a gradient may overflow in a step whose loss was finite."""
        broken = [name for name, tensor in self.method.trainable.state_dict().items() if not tensor.isfinite().all()]
        if self.context.any_rank(bool(broken))[0]:
            raise RunError(
                f"{broken[0] if broken else 'a tensor of another rank'} is not finite after step {done}, which was not "
                "saved; the last checkpoint is untouched: lower optim.lr, or use run.precision float32"
            )

    def _fail_nonfinite(self, step: int, batches: Sequence[Batch], losses: list[Tensor], reports: list[Report]) -> None:
        """Write down what led to the loss, and raise RunError before the weights take the step."""
        finite = bool(torch.isfinite(torch.stack(losses)).all())
        own_keys = [] if finite else [key for batch in batches for key in batch.keys]
        if own_keys:
            self._dump(step, own_keys, batches, losses, reports)
        keys = {rank: keys for rank, keys in enumerate(self.context.gather_objects(own_keys)) if keys}
        listed = "; ".join(f"rank {rank}: {', '.join(names[:8])}" for rank, names in keys.items())
        raise RunError(
            f"the loss of step {step + 1} is not finite on {listed}. Batch and losses are in {self.nan_dump}, the last "
            "checkpoint is untouched: look at these samples, lower optim.lr, or use run.precision float32"
        )

    def _dump(
        self, step: int, keys: list[str], batches: Sequence[Batch], losses: list[Tensor], reports: list[Report]
    ) -> None:
        """Write this rank's batches, their keys, losses and reports, so that the step can be inspected or replayed."""
        try:
            folder = self.nan_dump / f"step_{step + 1:08d}_rank_{self.context.rank}"
            folder.mkdir(parents=True, exist_ok=True)
            for index, batch in enumerate(batches):
                tensors = {f.name: v for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}
                whole = {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
                save_file(whole, folder / f"batch_{index}.safetensors")  # which refuses parts of a larger tensor
            facts = {
                "step": step + 1,
                "rank": self.context.rank,
                "keys": keys,
                "losses": [repr(loss.item()) for loss in losses],
                "reports": [{name: repr(value.item()) for name, value in report.items()} for report in reports],
            }
            (folder / "facts.json").write_text(json.dumps(facts, indent=1))
        except OSError as error:  # the other ranks still need this one's keys
            self.log.say(f"the batch of the step could not be written: {error}")
