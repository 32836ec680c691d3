"""Training runs of methods that take episodes."""

from typing import Any, Protocol

from fss.data.class_leakage import check_training_classes
from fss.data.dataset import DataConfig
from fss.data.episode_dataset import EpisodeSources
from fss.data.episodes import EpisodeConfig, training_source
from fss.data.folds import training_fold
from fss.data.paired_transforms import AugmentConfig
from fss.data.shard_sets import open_shard_set
from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RunConfig
from fss.methods.base import EpisodeMethod, Method
from fss.train.tasks.task import ValidatedTask, wrong_kind
from fss.train.validation.episode_validation import EpisodeValidation, ValidateConfig, held_out_classes


class EpisodeJob(Protocol):
    """The options that the task reads."""

    @property
    def run(self) -> RunConfig:
        """The group `run`."""
        ...

    @property
    def data(self) -> DataConfig:
        """The group `data`."""
        ...

    @property
    def episodes(self) -> EpisodeConfig:
        """The group `episodes`."""
        ...

    @property
    def augment(self) -> AugmentConfig:
        """The group `augment`."""
        ...

    @property
    def validate(self) -> ValidateConfig:
        """The group `validate`."""
        ...


class EpisodeTask(ValidatedTask):
    """Training on episodes of a fold's base classes; validated on episodes of classes that are held out."""

    kind = "meta"
    unit = "episodes"
    data: EpisodeSources
    method: EpisodeMethod
    validation: EpisodeValidation | None = None

    def __init__(self, job: EpisodeJob, method: Method, context: DistributedContext) -> None:
        if not isinstance(method, EpisodeMethod):
            raise wrong_kind(method, EpisodeMethod)
        self.job = job
        self.method = method
        self.shards = open_shard_set(job.data, context.on_main)
        manifest, episodes = self.shards.manifest, job.episodes
        self.fold = training_fold(episodes.scheme, episodes.fold, manifest, episodes.novel)
        self.held_out = held_out_classes(job.validate, self.fold)
        self.source = training_source(manifest, self.fold, episodes, job.run.seed, self.held_out)
        check_training_classes(method.seen_classes(), self.source.classes, manifest.classes)
        self.samples = len(self.source)
        self.data = EpisodeSources(shards=self.shards, source=self.source, augment=job.augment)
        self.measure_every = 0
        if job.validate.split != "none":
            self.validation = EpisodeValidation(
                job.validate,
                self.fold,
                self.shards,
                episodes,
                size=method.config.size,
                context=context,
                cache=job.data.cache,
            )
            self.measure_every = job.validate.every
            self.best_metric = "val/miou"

    def startup_messages(self) -> list[str]:
        """The fold, the training classes and images, the validation, and the caveats."""
        e, names = self.job.episodes, self.shards.manifest.classes
        treatment = "left out" if e.novel_in_training == "drop" else "kept, with these as background"
        messages = [
            f"scheme {e.scheme}, fold {e.fold}, {e.shots} shot(s): {len(self.source.classes)} classes to learn on "
            f"{len(self.source.images)} images; novel: {', '.join(names[c] for c in self.fold.novel)}; training images "
            f"that also show other classes are {treatment}"
        ]
        if self.validation:
            messages.append(
                f"validation on {len(self.validation.episodes)} episodes of {self.job.validate.split} classes "
                f"{', '.join(names[c] for c in self.validation.classes)}"
            )
        return messages + self.caveats()

    def caveats(self) -> list[str]:
        """A warning if the best weights are selected on the test classes."""
        if self.job.validate.split != "novel":
            return []
        return [
            "The best weights are selected on the test classes of the fold, as the reference implementations do: their "
            "score there is an upper bound, not a test."
        ]

    def export_metadata(self, seen: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The number of episodes seen, the fold, and how training treated its classes."""
        e = self.job.episodes
        return {
            "episodes_seen": seen,
            "scheme": e.scheme,
            "fold": e.fold,
            "novel": list(self.fold.novel),
            "held_out": list(self.held_out),
            "shots": e.shots,
            "novel_in_training": e.novel_in_training,
            "selected_on": self.job.validate.split,
        }
