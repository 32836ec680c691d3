"""The training loop: it runs any method, on any number of ranks, and goes on where it stopped."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fss.distributed.context import DistributedContext
from fss.distributed.signals import StopRequest
from fss.errors import RunError
from fss.methods.base import Method, StepContext
from fss.tracking.log import Log
from fss.tracking.meter import Meter
from fss.train.checkpoint import Checkpoints, State
from fss.train.optim import Schedule, set_learning_rate
from shards.format import ShardError


class Trainer:
    """One method's way from a step to the last one.

    batches: micro-batches from `start` on, `accumulate` of them a step. `after` is called at the end of every step with
    the number of steps done, for probes and the like.
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
        bad_samples,
        evidence: Path,
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
        self.evidence = evidence
        self.log_every = log_every
        self.save_every = save_every
        self.check_every = check_every
        self.meter = Meter(context.device)
        self.forward, self.optimizer = context.wrap(method, optimizer, schedule.steps)
        state.optimizer = self.optimizer  # the one that steps is the one to save

    def run(self, batches: Iterator, start: int, after=lambda done: None) -> int:
        """Train from step `start`; returns the number of steps done, fewer than planned where a signal asked to stop.

        Raises RunError on a loss that is not finite, ShardError where too much of the data cannot be read.
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
                if not stopping or done == total:  # whoever asked to stop will not wait for a measurement
                    self.context.report_progress(f"measuring after step {done}")
                    with self.meter.aside():
                        after(done)
                if stopping:
                    return done
        return total

    def _step(self, batches: Iterator, step: int, stop: StopRequest, logged: bool) -> tuple[bool, dict]:
        """One optimizer step; returns whether a stop was asked for on any rank, and the row that was logged."""
        self.context.report_progress(f"waiting for the data of step {step + 1}")
        seen, unreadable = self._fetch(batches)
        self.context.report_progress(f"in step {step + 1}")
        # One word between the ranks before the forward pass and one after it: nobody leaves, saves or fails alone.
        stopping, refused = self.context.any_rank(stop.asked, unreadable is not None)
        if refused:
            raise ShardError(next(text for text in self.context.gather_objects(unreadable) if text))

        losses, reports = [], []
        for batch in seen:
            with self.context.accumulate(self.forward):
                loss, report = self.forward(batch.to(self.context.device, non_blocking=True), step)
                self.context.backward(loss)
            losses.append(loss.detach())
            reports.append(report)
        finite = bool(torch.isfinite(torch.stack(losses)).all())
        if self.context.any_rank(not finite)[0]:
            self._fail_nonfinite(step, seen, losses, reports)

        lr = self.schedule.lr(step)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        row = self._row(step + 1, lr, losses, reports) if logged else {}
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(StepContext(self.context.collectives, step, self.schedule.steps))
        self.meter.step(self.schedule.batch)
        if logged:
            self.log.row(row | {"speed": self.meter.read()})
            self.log.distributions(step + 1, self.method.distributions)
        return stopping, row

    def _fetch(self, batches: Iterator) -> tuple[list, str | None]:
        """The micro-batches of a step; or, of data that cannot be read, why."""
        seen = []
        try:
            for _ in range(self.schedule.config.accumulate):
                with self.meter.waiting():
                    seen.append(next(batches))
                for text in self.bad_samples.note(seen[-1]):
                    self.log.say(text)
        except ShardError as error:
            return seen, str(error)
        return seen, None

    def _row(self, done: int, lr: float, losses: list[Tensor], reports: list[dict[str, Tensor]]) -> dict:
        """Scalars of this step, averaged over micro-batches and ranks; deterministic, unlike the speed beside them."""
        means = {name: torch.stack([report[name].float() for report in reports]).mean() for name in reports[0]}
        values = self.context.mean({"loss": torch.stack(losses).mean(), **means})
        norm = self.context.grad_norm(self.method, self.optimizer)
        return {"step": done, "epoch": self.schedule.epoch(done), "lr": lr, "grad_norm": norm, **values}

    def _check_equal(self) -> None:
        """All ranks must hold the same weights, momentum encoders and queues, bit for bit."""
        self.context.check_equal(self.state.held().items())

    def _check_finite(self, done: int) -> None:
        """A gradient may overflow where the loss does not; nobody could go on from weights that took it."""
        broken = [name for name, tensor in self.method.trainable.state_dict().items() if not tensor.isfinite().all()]
        if self.context.any_rank(bool(broken))[0]:
            raise RunError(
                f"{broken[0] if broken else 'a tensor of another rank'} is not finite after step {done}, which was not "
                "saved; the last checkpoint is untouched: lower optim.lr, or use run.precision float32"
            )

    def _fail_nonfinite(self, step: int, batches: list, losses: list[Tensor], reports: list[dict]) -> None:
        """Keep what led to the loss, name it, and stop before the weights take the step."""
        mine = [] if bool(torch.isfinite(torch.stack(losses)).all()) else [k for batch in batches for k in batch.keys]
        if mine:
            self._keep_evidence(step, mine, batches, losses, reports)
        keys = {rank: keys for rank, keys in enumerate(self.context.gather_objects(mine)) if keys}
        named = "; ".join(f"rank {rank}: {', '.join(names[:8])}" for rank, names in keys.items())
        raise RunError(
            f"the loss of step {step + 1} is not finite on {named}. Batch and losses are in {self.evidence}, the last "
            "checkpoint is untouched: look at these samples, lower optim.lr, or use run.precision float32"
        )

    def _keep_evidence(self, step: int, keys: list[str], batches: list, losses: list, reports: list[dict]) -> None:
        """This rank's batches, their keys, losses and reports, for a look or a replay."""
        try:
            folder = self.evidence / f"step_{step + 1:08d}_rank_{self.context.rank}"
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
        except OSError as error:  # the other ranks wait for the word that names the step
            self.log.say(f"the evidence could not be written: {error}")
