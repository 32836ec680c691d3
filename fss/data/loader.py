"""Batches for the method that asked for them: `load` looks at the spec and feeds any method on any number of ranks.

A batch is a pure function of the data, the seed and its own number (see `fss.data.dataset.BatchSource`), so workers only share
out batches: their number changes nothing, and neither does a restart.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context, parent_process, resource_tracker

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from fss.data.batch import Batch, EpisodeSpec, LabelSpec, ViewSpec
from fss.data.dataset import BatchSource, DataConfig
from fss.data.episode_dataset import EpisodeDataset, EpisodeSources
from fss.data.label_dataset import LabelDataset, LabelSources
from fss.data.view_dataset import ViewDataset
from fss.errors import ConfigError
from shards.format import ShardError
from shards.read import ShardSet

GRACE = 10  # unreadable samples before their share is judged
NAMED = 20  # unreadable samples that are named one by one
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # meant for the trainer, but sent to all its process group

DATASETS: dict[type, Callable[..., BatchSource]] = {
    ViewSpec: ViewDataset,
    EpisodeSpec: EpisodeDataset,
    LabelSpec: LabelDataset,
}
"""What a method consumes -> what makes it of (spec, data, config, seed)."""


def load(
    spec: ViewSpec | EpisodeSpec | LabelSpec,
    data: ShardSet | EpisodeSources | LabelSources,
    config: DataConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    start: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """This rank's micro-batches from optimizer step `start` on, `accumulate` a step, without an end.

    `spec` is what a method `batch_spec`. Views are made of a ShardSet with a ViewDataConfig, episodes of an
    EpisodeData, label maps of a LabelData.
    The samples of a step are cut in order into micro-batches, and each of these into the ranks' shares: a step has the
    same samples whatever `world_size` and `accumulate` are, a micro-batch whatever `world_size` is. The workers start at once.
    pin: whether batches lie in memory that a CUDA device can fetch from while it computes.

    Raises ConfigError where the batch cannot be dealt evenly, ShardError where the data lack what the spec needs,
    and while iterating where too many samples in a row, or a whole shard, cannot be read.
    """
    batches = Batches(
        dataset=DATASETS[type(spec)](spec, data, config, seed),
        share=per_rank_batch_size(config.batch, world_size, accumulate),
        rank=rank,
        world_size=world_size,
    )
    workers = {}
    if config.workers:
        # Forking the trainer would copy its threads' locks and its CUDA and RDMA state, spawning would import torch
        # again for each worker: a fork server does it once, in a clean process.
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        workers = {"multiprocessing_context": context, "prefetch_factor": config.prefetch}
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=count(start * accumulate),
        num_workers=config.workers,
        worker_init_fn=start_worker,
        pin_memory=pin,
        generator=torch.Generator(),  # else every start would draw a seed from the generator that methods draw from
        **workers,
    )
    with signals_blocked():
        iterator = iter(loader)
    return raising(iterator)


def per_rank_batch_size(batch: int, world_size: int, accumulate: int) -> int:
    """Samples of one micro-batch on one rank. Raises ConfigError, naming what would fit, where they come out uneven."""
    parts = world_size * accumulate
    share, rest = divmod(batch, parts)
    if rest:
        fitting = [str(n * parts) for n in (share, share + 1) if n]
        raise ConfigError(
            f"data.batch {batch} cannot be dealt evenly to {world_size} rank(s) x {accumulate} micro-batch(es): "
            f"give {' or '.join(fitting)}"
        )
    return share


@dataclass(kw_only=True)
class Batches(Dataset):
    """This rank's share of micro-batches by number: step * accumulate + a is micro-batch a of that optimizer step."""

    dataset: BatchSource
    share: int
    rank: int
    world_size: int

    def __getitem__(self, number: int) -> Batch | ShardError:
        """The batch; or the error that the trainer has to raise, which would lose its one sentence on the way."""
        start = (number * self.world_size + self.rank) * self.share
        try:
            return self.dataset.batch(start, start + self.share)
        except ShardError as error:
            return error


class BadSamples:
    """Counts the samples that had to be replaced on this rank, names them, and says when they are too many."""

    def __init__(self, limit_fraction: float):
        self.limit = limit_fraction
        self.read = 0
        self.bad = 0
        self.reasons: Counter[str] = Counter()  # 'key: reason' -> how often

    def note(self, batch: Batch) -> list[str]:
        """Lines to print: each bad sample once, then, past `NAMED` of them, only their count when it has doubled.

        Raises ShardError where more than the allowed share of all samples read was bad. The first few are never too
        many, lest one bad sample in the first batch ends a run; a share of 0 allows none.
        """
        self.read += len(batch) + len(batch.replaced)
        lines = []
        for text in batch.replaced:
            self.bad += 1
            self.reasons[text] += 1
            if self.reasons[text] == 1 and len(self.reasons) <= NAMED:
                lines.append(f"replaced an unreadable sample, {text}")
            elif len(self.reasons) > NAMED and self.bad.bit_count() == 1:
                lines.append(f"replaced {self.bad} unreadable samples of {self.read}, {len(self.reasons)} different")
        if self.bad > self.limit * self.read and (self.bad >= GRACE or not self.limit):
            last = "; ".join(list(self.reasons)[-3:])
            raise ShardError(
                f"{self.bad} of {self.read} samples could not be read, more than data.bad_fraction {self.limit} allows "
                f"(the last: {last}): find them with python -m shards.check"
            )
        return lines


def start_worker(worker: int) -> None:
    """Workers are many already: none computes on threads of its own. And they end with the trainer, however it ends."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=follow_trainer, daemon=True).start()


def follow_trainer() -> None:
    """End this worker when the trainer is gone or ends it itself, but not on a signal from anybody else.

    A DataLoader's worker would look for its parent, which here is the fork server.
    """
    trainer = parent_process()
    while trainer.is_alive():
        heard = signal.sigtimedwait([signal.SIGTERM], 1.0)  # blocked since `signals_blocked`
        if heard and heard.si_pid == trainer.pid:
            break
    os._exit(1)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes started inside take no notice of `SIGNALS`, so that a trainer asked to stop can finish its step.

    Here the signals only wait. A mask, unlike a handler, also passes to the fork server, where workers come from.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # its start unblocks two of the signals, and the fork server starts it
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def raising(batches: Iterator[Batch | ShardError]) -> Iterator[Batch]:
    """Raise the errors among the batches here, in the process that can act on them."""
    for batch in batches:
        if isinstance(batch, ShardError):
            try:
                raise batch
            finally:
                del batch, batches  # or the error's traceback would hold the workers in a cycle, and they would hang
        yield batch
