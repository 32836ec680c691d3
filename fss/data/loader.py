"""Batches for any method on any number of ranks: `load` chooses the data set by the type of the method's spec.

A batch is a pure function of the data, the seed and its own number (see `fss.data.dataset.BatchSource`). So the number
of workers changes nothing, and neither does a restart.
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
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from fss.data.batch import Batch, EpisodeSpec, LabelSpec, ViewSpec
from fss.data.dataset import BatchSource, DataConfig
from fss.data.episode_dataset import EpisodeDataset, EpisodeSources
from fss.data.label_dataset import LabelDataset, LabelSources
from fss.data.view_dataset import ViewDataset
from fss.data.worker_count import worker_count
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
"""Type of a spec -> maker of its batches from (spec, data, config, seed)."""


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
    """Iterate without an end over this rank's micro-batches from optimizer step `start` on, `accumulate` a step.

    `spec` is the method's `batch_spec`. Views are made from a ShardSet with a ViewDataConfig, episodes from
    EpisodeSources, label maps from LabelSources.
    The samples of a step are split in order into micro-batches, and each of these into the ranks' shares: a step has
    the same samples for every `world_size` and `accumulate`, a micro-batch for every `world_size`. The workers start
    at once; how many, if `data.workers` leaves it open: `fss.data.worker_count`.
    pin: put batches into page-locked memory, which a CUDA device can read while it computes.

    Raises ConfigError if the batch cannot be split evenly, ShardError if the data lack what the spec needs, and
    during iteration ShardError if too many samples in a row, or a whole shard, cannot be read.
    """
    batches = MicroBatches(
        dataset=DATASETS[type(spec)](spec, data, config, seed),
        batch_size=per_rank_batch_size(config.batch, world_size, accumulate),
        rank=rank,
        world_size=world_size,
    )
    workers = worker_count(config, threads=1 if pin else torch.get_num_threads())
    processes: dict[str, Any] = {}
    if workers:
        # A fork of the trainer would copy the locks of its threads and its CUDA and RDMA state. A spawned process would
        # import torch again for each worker. A fork server imports it once, in a clean process.
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        processes = {"multiprocessing_context": context, "prefetch_factor": config.prefetch}
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=count(start * accumulate),
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=pin,
        generator=torch.Generator(),  # otherwise every start would draw from the generator of the methods
        **processes,
    )
    with signals_blocked():
        iterator = iter(loader)
    return raising(iterator)


def per_rank_batch_size(batch: int, world_size: int, accumulate: int) -> int:
    """Return the samples of one micro-batch on one rank.

    Raises ConfigError, with the values that fit, if `batch` cannot be split evenly.
    """
    parts = world_size * accumulate
    share, rest = divmod(batch, parts)
    if rest:
        fitting = [str(n * parts) for n in (share, share + 1) if n]
        raise ConfigError(
            f"data.batch {batch} cannot be split evenly over {world_size} rank(s) x {accumulate} micro-batch(es): "
            f"give {' or '.join(fitting)}"
        )
    return share


@dataclass(kw_only=True)
class MicroBatches(Dataset):
    """This rank's share of micro-batches by number: step * accumulate + a is micro-batch a of that optimizer step."""

    dataset: BatchSource
    batch_size: int
    """Samples of one micro-batch on one rank."""
    rank: int
    world_size: int

    def __getitem__(self, number: int) -> Batch | ShardError:
        """Return the batch, or the error for the trainer to raise: DataLoader would replace its sentence."""
        start = (number * self.world_size + self.rank) * self.batch_size
        try:
            return self.dataset.batch(start, start + self.batch_size)
        except ShardError as error:
            return error


class BadSamples:
    """Counter of the samples that were replaced on this rank, which names them and raises an error for too many."""

    def __init__(self, limit_fraction: float):
        self.limit = limit_fraction
        self.read = 0
        self.bad = 0
        self.reasons: Counter[str] = Counter()  # 'key: reason' -> how often

    def note(self, batch: Batch) -> list[str]:
        """Count a batch and return the lines to print: each bad sample once, after `NAMED` of them doubled counts.

        Raises ShardError if more than the allowed share of all samples read was bad. The first `GRACE` are never too
        many, so that one bad sample in the first batch does not end a run; a share of 0 allows none.
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
    """Limit a worker to one thread, because there are many workers, and end it with the trainer, however that ends."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=follow_trainer, daemon=True).start()


def follow_trainer() -> None:
    """End this worker when the trainer has ended or terminates it, but not on a signal from another process.

    A DataLoader's worker would check for its parent, which here is the fork server.
    """
    trainer = parent_process()
    assert trainer is not None  # this function runs in workers alone
    while trainer.is_alive():
        received = signal.sigtimedwait([signal.SIGTERM], 1.0)  # blocked since `signals_blocked`
        if received and received.si_pid == trainer.pid:
            break
    os._exit(1)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block `SIGNALS` in processes started inside, so that a trainer that was asked to stop can finish its step.

    In this process the signals are only delayed. A mask, unlike a handler, is also inherited by the fork server, which
    starts the workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # its start unblocks two of the signals, and the fork server starts it
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def raising(batches: Iterator[Batch | ShardError]) -> Iterator[Batch]:
    """Iterate over batches. Raises each ShardError among them here, in the process that can act on it."""
    for batch in batches:
        if isinstance(batch, ShardError):
            try:
                raise batch
            finally:
                del (
                    batch,
                    batches,
                )  # otherwise the error's traceback would keep the workers in a cycle, and they would hang
        yield batch
