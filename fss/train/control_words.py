"""The control word of a step: what all ranks must learn of each other, without a wait of the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fss.data.batch import Batch
from fss.distributed.context import DistributedContext
from fss.methods.base import Report
from fss.nn.transfer import device_table, start_to_host, to_device
from shards.format import ShardError


@dataclass
class LaunchedStep:
    """A step whose control word the host has not read; what it was made of stays until then."""

    index: int
    batches: Sequence[Batch]
    losses: list[Tensor]
    """Scalars of the micro-batches."""
    reports: list[Report]
    unreadable: str | None
    """Why this rank could not read its data."""
    word: Callable[[], Tensor]
    """Waits until the device has computed the losses: their sum, and how many ranks set each flag; float32 [3]."""


class ControlWords:
    """Sends a word with every step, one small all-reduce between the devices, and reads it after the next was launched.

    Its sum of the losses tells the device whether to take the step: it skips the update of a step whose loss is not
    finite on any rank, so that weights and optimizer state stay those of the step before. (Queues, momentum encoders
    and running statistics do not, but nothing is saved any more.)

    optimizer: torch's own, inside of what accelerate or DeepSpeed put around it. on_nonfinite: raises the error for a
    loss that is not finite; called on all ranks.
    """

    def __init__(
        self,
        context: DistributedContext,
        optimizer: torch.optim.Optimizer,
        on_nonfinite: Callable[[LaunchedStep], object],
    ) -> None:
        self._context = context
        self._optimizer = optimizer
        self._on_nonfinite = on_nonfinite
        self._unread: list[LaunchedStep] = []
        self._stopping = False

    def send(
        self,
        index: int,
        batches: Sequence[Batch],
        losses: list[Tensor],
        reports: list[Report],
        *,
        stop: bool,
        unreadable: str | None,
    ) -> None:
        """Send the word of step `index`, between its backward pass and its update. Collective.

        losses: scalars. stop: whether this rank was asked to stop. unreadable: why it could not read its data.
        """
        own = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        flags = _flags(stop, unreadable is not None, own.device)
        total = self._context.collectives.all_reduce(torch.cat([own.float().reshape(1), flags]))
        loss = total[0]  # not finite if one of its terms is not; then loss - loss is NaN, which equals nothing
        self._optimizer.found_inf = (loss - loss).ne(0).float()  # type: ignore[attr-defined] # read by fused optimizers
        self._unread.append(LaunchedStep(index, batches, losses, reports, unreadable, start_to_host(total)))

    def stop_requested(self, before: int) -> bool:
        """Read the words of the steps below `before`; return whether any rank was asked to stop by then.

        The host waits until the device has computed these steps' losses. Raises ShardError if a rank could not read its
        data, RunError if a loss is not finite; the same on all ranks.
        """
        while self._unread and self._unread[0].index < before:
            step = self._unread.pop(0)
            loss, stop, unreadable = step.word().tolist()
            if unreadable:
                raise ShardError(next(text for text in self._context.gather_objects(step.unreadable) if text))
            if loss - loss != 0:
                self._on_nonfinite(step)
            self._stopping = self._stopping or stop > 0
        return self._stopping


@device_table
def _flags(stop: bool, unreadable: bool, device: torch.device) -> Tensor:
    """Both as float32 [2]."""
    return to_device(torch.tensor([float(stop), float(unreadable)]), device)
