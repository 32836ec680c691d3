"""Losses and weights that are not finite: found without a wait of the host, kept from checkpoints, written down."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fss.data.batch import Batch
from fss.distributed.context import DistributedContext
from fss.errors import RunError
from fss.methods.base import Method, Report
from fss.nn.transfer import start_to_host


@dataclass
class _Step:
    """A step whose losses the host has not seen."""

    index: int
    batches: Sequence[Batch]
    losses: list[Tensor]
    reports: list[Report]
    failed: Callable[[], Tensor]


class LossGuard:
    """Ends a run whose loss is not finite on any rank, before anything of that step is saved or logged.

    The device itself skips the optimizer's update of such a step, on all ranks: weights and optimizer state stay those
    of the step before. (Queues, momentum encoders and running statistics do not, but nothing is saved any more.) The
    host sees it one step later, so that it never waits for the step that runs.

    optimizer: torch's own, inside of what accelerate or DeepSpeed put around it. folder: for the batches that led to
    the loss. say: prints a message.
    """

    def __init__(
        self, context: DistributedContext, optimizer: torch.optim.Optimizer, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._context = context
        self._optimizer = optimizer
        self._folder = folder
        self._say = say
        self._unchecked: list[_Step] = []

    def skip_nonfinite(self, step: int, batches: Sequence[Batch], losses: list[Tensor], reports: list[Report]) -> None:
        """Have the next update of the optimizer skipped if a loss, a scalar on any rank, is not finite. Collective."""
        own = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        total = self._context.collectives.all_reduce(own.float())  # not finite if one of its terms is not
        failed = (total - total).ne(0).float()  # NaN - NaN and inf - inf are NaN, which equals nothing
        self._optimizer.found_inf = failed  # type: ignore[attr-defined] # torch's fused optimizers read it on the device
        self._unchecked.append(_Step(step, batches, losses, reports, start_to_host(failed)))

    def check(self, before: int) -> None:
        """Raise RunError if the loss of a step below `before` is not finite on any rank. Collective if it raises.

        Waits until the device has computed those losses.
        """
        while self._unchecked and self._unchecked[0].index < before:
            step = self._unchecked.pop(0)
            if bool(step.failed()):
                self._fail(step)

    def _fail(self, step: _Step) -> None:
        finite = bool(torch.stack(step.losses).isfinite().all())
        own_keys = [] if finite else [key for batch in step.batches for key in batch.keys]
        if own_keys:
            self._dump(step, own_keys)
        keys = {rank: keys for rank, keys in enumerate(self._context.gather_objects(own_keys)) if keys}
        listed = "; ".join(f"rank {rank}: {', '.join(names[:8])}" for rank, names in keys.items())
        raise RunError(
            f"the loss of step {step.index + 1} is not finite on {listed}. Batch and losses are in {self._folder}, the "
            "last checkpoint is untouched: look at these samples, lower optim.lr, or use run.precision float32"
        )

    def _dump(self, step: _Step, keys: list[str]) -> None:
        """Write this rank's batches, their keys, losses and reports, so that the step can be inspected or replayed."""
        try:
            folder = self._folder / f"step_{step.index + 1:08d}_rank_{self._context.rank}"
            folder.mkdir(parents=True, exist_ok=True)
            for index, batch in enumerate(step.batches):
                # safetensors takes neither parts of a larger tensor nor another memory format.
                tensors = {
                    name: tensor.cpu().clone(memory_format=torch.contiguous_format)
                    for name, tensor in batch.tensors().items()
                }
                save_file(tensors, folder / f"batch_{index}.safetensors")
            facts = {
                "step": step.index + 1,
                "rank": self._context.rank,
                "keys": keys,
                "losses": [repr(loss.item()) for loss in step.losses],
                "reports": [{name: repr(value.item()) for name, value in report.items()} for report in step.reports],
            }
            (folder / "facts.json").write_text(json.dumps(facts, indent=1))
        except OSError as error:  # the other ranks still need this one's keys
            self._say(f"the batch of the step could not be written: {error}")


def check_weights(method: Method, context: DistributedContext, done: int) -> None:
    """Raise RunError if a weight is not finite after `done` steps: a gradient may overflow where the loss did not.

    Collective; the host waits for the device once.
    """
    weights = method.trainable.state_dict()
    finite = torch.stack([tensor.isfinite().all() for tensor in weights.values()]).cpu().tolist()
    broken = [name for name, whole in zip(weights, finite, strict=True) if not whole]
    if context.any_rank(bool(broken))[0]:
        raise RunError(
            f"{broken[0] if broken else 'a tensor of another rank'} is not finite after step {done}, which was not "
            "saved; the last checkpoint is untouched: lower optim.lr, or use run.precision float32"
        )
