"""The data of the next step, fetched and sent to the device while the device still computes the one before."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fss.data.batch import Batch
from fss.data.loader import BadSamples
from fss.distributed.context import DistributedContext
from fss.distributed.signals import StopRequest
from fss.tracking.log import Log
from fss.tracking.meter import Meter
from shards.format import ShardError


@dataclass
class StepInput:
    """The micro-batches of one step on this rank, and what its control word says of all ranks."""

    micro_batches: list[Batch]
    """On the device, or on their way to it."""
    unreadable: str | None
    """Why this rank could not read its data; it has those of the step before instead."""
    context: DistributedContext
    control_word: Callable[[], tuple[bool, ...]]
    """Waits for the other ranks; whether any was asked to stop, whether any could not read its data."""

    def stop_requested(self) -> bool:
        """Return whether any rank was asked to stop before this step. Waits for the other ranks."""
        return self.control_word()[0]

    def check_readable(self) -> None:
        """Raise ShardError, the same on all ranks, if one of them could not read its data. Waits for the others."""
        if self.control_word()[1]:
            raise ShardError(next(text for text in self.context.gather_objects(self.unreadable) if text))


class Prefetcher:
    """Fetches the data of one step after the other, and tells the other ranks how that went.

    batches: micro-batches in memory of the host, `accumulate` of them a step. say: prints a message.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        *,
        accumulate: int,
        context: DistributedContext,
        bad_samples: BadSamples,
        stop: StopRequest,
        meter: Meter,
        log: Log,
    ) -> None:
        self._batches = batches
        self._accumulate = accumulate
        self._context = context
        self._bad_samples = bad_samples
        self._stop = stop
        self._meter = meter
        self._log = log
        self._newest: list[Batch] = []
        self._copies = torch.cuda.Stream(context.device) if context.device.type == "cuda" else None

    def fetch(self, step: int) -> StepInput:
        """Read the data of `step` and start their copy to the device; start the control word of the step. Collective.

        A rank that cannot read its data gets those of the step before once more: the others already take the step, and
        learn the reason from `StepInput.check_readable` afterwards.
        """
        self._context.report_progress(f"waiting for the data of step {step + 1}")
        unreadable = None
        try:
            self._newest = [self._send(self._read()) for _ in range(self._accumulate)]
        except ShardError as error:
            unreadable = str(error)
        word = self._context.start_any_rank(self._stop.asked, unreadable is not None)
        return StepInput(self._newest, unreadable, self._context, word)

    def _read(self) -> Batch:
        with self._meter.waiting():
            batch = next(self._batches)
        for text in self._bad_samples.note(batch):
            self._log.say(text)
        return batch

    def _send(self, batch: Batch) -> Batch:
        """Copy to the device; on CUDA on a stream of its own, which does not queue behind the step that runs."""
        device = self._context.device
        if self._copies is None:
            return batch.to(device, non_blocking=True)
        with torch.cuda.stream(self._copies):
            sent = batch.to(device, non_blocking=True)
        return sent

    def wait_for_copies(self, given: StepInput) -> None:
        """Have the device's next kernels wait until the data have arrived; the host goes on."""
        if self._copies is not None:
            stream = torch.cuda.current_stream(self._context.device)
            stream.wait_stream(self._copies)
            for tensor in (tensor for batch in given.micro_batches for tensor in batch.tensors().values()):
                tensor.record_stream(stream)  # their memory belongs to the other stream
