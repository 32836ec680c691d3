"""Runs of methods that learn from episodes."""

from typing import Any

from fss.data.class_leakage import check_training_classes
from fss.data.episode_dataset import EpisodeSources
from fss.data.episodes import training_source
from fss.data.folds import training_fold
from fss.data.shard_sets import open_shard_set
from fss.distributed.context import DistributedContext
from fss.methods.base import Method
from fss.train.tasks.task import ValidatedTask
from fss.train.validation.episode_validation import Validation, held_out


class EpisodeTask(ValidatedTask):
    """Learning from episodes of a fold's base classes; measured by episodes of classes that are left out."""

    kind = "meta"
    unit = "episodes"

    def __init__(self, job: Any, method: Method, context: DistributedContext) -> None:
        self.job = job
        self.shards = open_shard_set(job.data, context.on_main)
        manifest, episodes = self.shards.manifest, job.episodes
        self.fold = training_fold(episodes.scheme, episodes.fold, manifest, episodes.novel)
        self.source = training_source(manifest, self.fold, episodes, job.run.seed, held_out(job.validate, self.fold))
        check_training_classes(method.seen_classes(), self.source.classes, manifest.classes)
        self.samples = len(self.source)
        self.data = EpisodeSources(shards=self.shards, source=self.source, augment=job.augment)
        self.every = 0
        if job.validate.split != "none":
            self.validation = Validation(
                job.validate,
                self.fold,
                self.shards,
                episodes,
                size=method.config.size,
                context=context,
                cache=job.data.cache,
            )
            self.every = job.validate.every
            self.selects_by = "val/miou"

    def opening(self) -> list[str]:
        e, names = self.job.episodes, self.shards.manifest.classes
        kept = "left out" if e.novel_in_training == "drop" else "kept, as background"
        said = [
            f"scheme {e.scheme}, fold {e.fold}, {e.shots} shot(s): {len(self.source.classes)} classes to learn on "
            f"{len(self.source.images)} images; novel: {', '.join(names[c] for c in self.fold.novel)}; training images "
            f"that also hold other classes are {kept}"
        ]
        if self.validation:
            said.append(
                f"validation on {len(self.validation.episodes)} episodes of {self.job.validate.split} classes "
                f"{', '.join(names[c] for c in self.validation.classes)}"
            )
        return said + self.caveats()

    def caveats(self) -> list[str]:
        if self.job.validate.split != "novel":
            return []
        return [
            "The best weights are selected on the test classes of the fold, as the published programs do: their score "
            "there is an upper bound, not a test."
        ]

    def export_metadata(self, seen: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        e = self.job.episodes
        return {
            "episodes_seen": seen,
            "scheme": e.scheme,
            "fold": e.fold,
            "novel": list(self.fold.novel),
            "held_out": list(held_out(self.job.validate, self.fold)),
            "shots": e.shots,
            "novel_in_training": e.novel_in_training,
            "selected_on": self.job.validate.split,
        }
