"""What every training run has beside its steps: data, measurements, what is told of it."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from fss.distributed.context import DistributedContext
from fss.evaluate.examples import EpisodeExample
from fss.methods.base import Method
from fss.provenance import digest
from fss.tracking.tracker import Kind
from fss.train.validation.label_validation import LabelExample
from shards.read import ShardSet


class Task(abc.ABC):
    """The part of a run that depends on what its method learns from. Made alike on every rank."""

    selects_by: ClassVar[str | None] = None
    """The measurement whose highest value marks the best weights."""
    kind: ClassVar[Kind]
    """What viewers call runs of this task."""
    unit: ClassVar[str]
    """What a batch is counted in."""
    shards: ShardSet
    data: Any
    """What `fss.data.loader.load` takes."""
    samples: int
    """Samples of an epoch."""
    every: int | None
    """Steps between measurements. 0: only before the first step and after the last. None: a twentieth of the run."""

    @abc.abstractmethod
    def __init__(self, job: Any, method: Method, context: DistributedContext) -> None:
        """job: one of fss.config's. Raises UserError or ShardError where job, shards and method do not fit."""

    @abc.abstractmethod
    def measure(self, method: Method) -> dict[str, float]:
        """What is measured at times, by name; empty where there is nothing to measure on. Collective."""

    def examples(self, method: Method) -> Sequence[EpisodeExample] | Sequence[LabelExample]:
        """Examples of what the method does now, to be drawn; empty if there are none. For one rank."""
        return ()

    def identity(self) -> dict[str, object]:
        """What decides the result beside the configuration and the training shards."""
        return {}

    def opening(self) -> list[str]:
        """Sentences for the start of a run."""
        return []

    def caveats(self) -> list[str]:
        """Sentences on what keeps the result from being compared, whatever the method."""
        return []

    @abc.abstractmethod
    def export_metadata(self, seen: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Fields of an export's header about the training: after `seen` samples, with the logged `rows`."""


class Validating(Protocol):
    """Scores a method, and draws what it does."""

    shards: ShardSet

    def __call__(self, method: Method) -> dict[str, float]:
        """What is measured, by name. Collective."""

    def examples(self, method: Any) -> Sequence[EpisodeExample] | Sequence[LabelExample]:
        """The same few examples at every validation, with what the method makes of them."""
        ...


class ValidatedTask(Task):
    """A task that is measured by its `validation`, where it has one."""

    validation: Validating | None = None

    def measure(self, method: Method) -> dict[str, float]:
        return self.validation(method) if self.validation else {}

    def examples(self, method: Method) -> Sequence[EpisodeExample] | Sequence[LabelExample]:
        return self.validation.examples(method) if self.validation else ()

    def identity(self) -> dict[str, object]:
        if self.validation is None:
            return {}
        return {"validate.manifest": digest(self.validation.shards.manifest.content())}
