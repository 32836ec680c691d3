"""Base of the training data sets: options, the protocol of a source of batches, and the replacement of bad samples."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from fss.data.batch import Batch
from fss.errors import ConfigError, at_least
from shards.format import ShardError
from shards.read import LostShardError, ShardSet

ATTEMPTS = 20  # unreadable samples in a row before a data set gives up
Candidate = TypeVar("Candidate")
Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Source of the samples and the processes that load them."""

    shards: str | None = None
    """Packed set: a folder, or a remote prefix such as https://host/set. Without one: an embedded synthetic set."""
    cache: str | None = None
    """Local folder that the shards of a remote set are fetched to; the processes of a machine share it."""
    batch: int = 256
    """Samples (images, or episodes) of an optimizer step, over all ranks and micro-batches."""
    workers: int | None = None
    """Processes per rank that prepare batches; 0 prepares them in the training process. null: a rank's share of the
    cores of its node, less what the rank itself needs, 1 to 16. Evaluations read with as many threads."""
    prefetch: int = 2
    """Batches that each worker keeps ready."""
    bad_fraction: float = 0.01
    """Share of unreadable samples above which the run stops; up to it they are replaced and named."""

    def __post_init__(self) -> None:
        at_least("data", self, batch=1, workers=0, prefetch=1)
        if not 0 <= self.bad_fraction <= 1:
            raise ConfigError(f"data.bad_fraction is {self.bad_fraction}: give a share between 0 and 1")


class BatchSource(Protocol):
    """An endless sequence of training samples. A small picklable object, of which every worker has a copy."""

    def batch(self, start: int, stop: int) -> Batch:
        """Return the samples at positions [start, stop), a pure function of the shards, the seed and the positions.

        Raises ShardError if too many samples in a row, or a whole shard, cannot be read.
        """


def first_readable(
    candidates: Iterator[Candidate], make: Callable[[Candidate], Row], replaced: list[str], shards: ShardSet
) -> Row:
    """Return `make(candidate)` of the first candidate that can be read; the errors of others are added to `replaced`.

    Raises ShardError if `ATTEMPTS` candidates in a row cannot be read, and LostShardError at once.
    """
    for candidate in islice(candidates, ATTEMPTS):
        try:
            return make(candidate)
        except LostShardError:
            raise
        except ShardError as error:
            replaced.append(str(error))
    raise ShardError(
        f"{ATTEMPTS} samples in a row cannot be read, the last was {replaced[-1]}: "
        f"check the set with python -m shards.check {shards.folder}"
    )
