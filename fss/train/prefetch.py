"""The data of the next step, fetched and sent to the device while the device still computes the one before."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fss.data.batch import Batch
from fss.data.loader import BadSamples
from fss.distributed.context import DistributedContext
from fss.tracking.log import Log
from fss.tracking.meter import Meter
from shards.format import ShardError


@dataclass
class StepInput:
    """The data of one step on this rank."""

    micro_batches: list[Batch]
    """On the device, or on their way to it."""
    unreadable: str | None
    """Why this rank could not read its data; it has those of the step before instead."""


class Prefetcher:
    """Fetches the data of one step after the other.

    batches: micro-batches in memory of the host, `accumulate` of them a step.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        *,
        accumulate: int,
        context: DistributedContext,
        bad_samples: BadSamples,
        meter: Meter,
        log: Log,
    ) -> None:
        self._batches = batches
        self._accumulate = accumulate
        self._context = context
        self._bad_samples = bad_samples
        self._meter = meter
        self._log = log
        self._newest = StepInput([], None)
        self._copies = torch.cuda.Stream(context.device) if context.device.type == "cuda" else None

    def fetch(self, step: int) -> StepInput:
        """Read the data of `step` and start their copy to the device.

        A rank that cannot read its data gets those of the step before once more, from then on: the other ranks already
        take the step, and hear of it by its control word.
        """
        self._context.report_progress(f"waiting for the data of step {step + 1}")
        if self._newest.unreadable is None:
            try:
                self._newest = StepInput([self._send(self._read()) for _ in range(self._accumulate)], None)
            except ShardError as error:
                self._newest = StepInput(self._newest.micro_batches, str(error))
        return self._newest

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
