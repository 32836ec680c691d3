"""The part of a training run that depends on the kind of method: its data, its measurements, its messages."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from fss.data.episode_dataset import EpisodeSources
from fss.data.label_dataset import LabelSources
from fss.distributed.context import DistributedContext
from fss.errors import ConfigError
from fss.evaluate.examples import EpisodeExample
from fss.methods.base import Method
from fss.provenance import digest
from fss.tracking.tracker import Kind
from fss.train.validation.label_validation import LabelExample
from shards.read import ShardSet

Examples = Sequence[EpisodeExample] | Sequence[LabelExample]


class Task(abc.ABC):
    """The part of a training run that depends on the kind of method. Built alike on every rank."""

    kind: ClassVar[Kind]
    """The kind of run that trackers record."""
    unit: ClassVar[str]
    """The plural noun for the samples of a batch."""
    method: Method
    shards: ShardSet
    """The training shards."""
    data: ShardSet | EpisodeSources | LabelSources
    """The `data` of `fss.data.loader.load`."""
    samples: int
    """Samples of an epoch."""
    measure_every: int | None
    """Steps between measurements. 0: only before the first step and after the last. None: a twentieth of the run."""
    best_metric: str | None = None
    """The measured value whose maximum marks the best weights; None if the last weights are the only ones."""

    @abc.abstractmethod
    def __init__(self, job: Any, method: Method, context: DistributedContext) -> None:
        """Open the data of a job (see the job's protocol beside each task).

        Raises ConfigError if the method is of another kind, UserError or ShardError if job, shards and method do not
        fit.
        """

    @abc.abstractmethod
    def measure(self) -> dict[str, float]:
        """Measure the method as it stands: values by name; empty if there is nothing to measure on. Collective."""

    def examples(self) -> Examples:
        """Examples of what the method predicts now, to be drawn; empty if there are none. For one rank."""
        return ()

    def identity(self) -> dict[str, object]:
        """Values that decide the result besides the configuration and the training shards, by name."""
        return {}

    def startup_messages(self) -> list[str]:
        """Sentences for the start of a run."""
        return []

    def caveats(self) -> list[str]:
        """Sentences on why the result of any method must not be compared with other results."""
        return []

    @abc.abstractmethod
    def export_metadata(self, seen: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Fields of an export's header about the training: after `seen` samples, with the logged `rows`."""


class Validation(Protocol):
    """Scores a method, and gives examples of its predictions."""

    @property
    def shards(self) -> ShardSet:
        """The set that is validated on."""
        ...

    def __call__(self, method: Any) -> dict[str, float]:
        """The scores by name. Collective."""
        ...

    def examples(self, method: Any) -> Examples:
        """The same few examples at every validation, with the method's predictions."""
        ...


class ValidatedTask(Task):
    """A task that is measured by a `validation`, if it has one."""

    @property
    @abc.abstractmethod
    def validation(self) -> Validation | None:
        """The validation of the run; None if `validate` turns it off."""

    def measure(self) -> dict[str, float]:
        """The scores of the validation. Collective."""
        return self.validation(self.method) if self.validation else {}

    def examples(self) -> Examples:
        """The examples of the validation. For one rank."""
        return self.validation.examples(self.method) if self.validation else ()

    def identity(self) -> dict[str, object]:
        """The validation shards: the best weights depend on them."""
        if self.validation is None:
            return {}
        return {"validate.manifest": digest(self.validation.shards.manifest.content())}


def wrong_kind(method: Method, kind: type) -> ConfigError:
    """The error for a method whose `batch_spec` is that of another kind of method."""
    name = type(method).__name__
    return ConfigError(
        f"method {name} is no {kind.__name__} but asks for its batches: derive it from fss.methods.base."
        f"{kind.__name__}, or return the batch_spec of its own kind"
    )
