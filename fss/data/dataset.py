"""What every loader is built on: where samples come from, and how the bad ones among them are stood in for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from fss.data.batch import Batch
from fss.errors import ConfigError, at_least
from shards.format import ShardError
from shards.read import LostShardError, ShardSet

ATTEMPTS = 20  # unreadable samples in a row before a feed gives up
Candidate, Row = TypeVar("Candidate"), TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples come from and how they are fed."""

    shards: str | None = None
    """Packed set: a folder, or a remote prefix such as https://host/set. Without one: an embedded synthetic set."""
    cache: str | None = None
    """Local folder that the shards of a remote set are fetched to; the processes of a machine share it."""
    batch: int = 256
    """Samples (images, or episodes) of an optimizer step, over all ranks and micro-batches."""
    workers: int = 4
    """Processes per rank that prepare batches; 0 prepares them in the training process."""
    prefetch: int = 2
    """Batches that each worker keeps ready."""
    bad_fraction: float = 0.01
    """Share of unreadable samples past which the run stops; below it they are replaced and named."""

    def __post_init__(self) -> None:
        at_least("data", self, batch=1, workers=0, prefetch=1)
        if not 0 <= self.bad_fraction <= 1:
            raise ConfigError(f"data.bad_fraction is {self.bad_fraction}: give a share between 0 and 1")


class BatchSource(Protocol):
    """An endless sequence of training samples. A small picklable object: every worker has one of its own."""

    def batch(self, start: int, stop: int) -> Batch:
        """The samples at positions [start, stop), a pure function of the shards, the seed and the positions.

        Raises ShardError where too many samples in a row, or a whole shard, cannot be read.
        """


def first_readable(
    candidates: Iterator[Candidate], make: Callable[[Candidate], Row], replaced: list[str], shards: ShardSet
) -> Row:
    """What `make` gives of the first candidate that can be read; why others cannot is added to `replaced`.

    Raises ShardError where `ATTEMPTS` candidates in a row cannot be read, LostShardError as it comes.
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
        f"see what is wrong with python -m shards.check {shards.folder}"
    )
