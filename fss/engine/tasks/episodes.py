"""Runs of methods that learn from episodes."""

from typing import Any

from fss.data.episode_feed import EpisodeData
from fss.data.episodes import training_source
from fss.data.folds import training_fold
from fss.engine.dist import World
from fss.engine.learnt import check_training
from fss.engine.reports import episodes as episodes_page
from fss.engine.reports.page import Story
from fss.engine.run import RunDir
from fss.engine.tasks.task import ValidatedTask, open_shards
from fss.engine.validation.episodes import Validation, held_out
from fss.methods.base import Method


class EpisodeTask(ValidatedTask):
    """Learning from episodes of a fold's base classes; measured by episodes of classes that are left out."""

    kind = "meta"
    unit = "episodes"

    def __init__(self, job: Any, method: Method, world: World) -> None:
        self._job = job
        self.shards = open_shards(job.data, world)
        manifest, episodes = self.shards.manifest, job.episodes
        self.fold = training_fold(episodes.scheme, episodes.fold, manifest, episodes.novel)
        self.source = training_source(manifest, self.fold, episodes, job.run.seed, held_out(job.validate, self.fold))
        check_training(method.learnt(), self.source.classes, manifest.classes)
        self.samples = len(self.source)
        self.data = EpisodeData(shards=self.shards, source=self.source, augment=job.augment)
        self.every = 0
        if job.validate.split != "none":
            self.validation = Validation(
                job.validate,
                self.fold,
                self.shards,
                episodes,
                size=method.config.size,
                world=world,
                cache=job.data.cache,
            )
            self.every = job.validate.every
            self.selects_by = "val/miou"

    def opening(self) -> list[str]:
        e, names = self._job.episodes, self.shards.manifest.classes
        kept = "left out" if e.novel_in_training == "drop" else "kept, as background"
        said = [
            f"scheme {e.scheme}, fold {e.fold}, {e.shots} shot(s): {len(self.source.classes)} classes to learn on "
            f"{len(self.source.images)} images; novel: {', '.join(names[c] for c in self.fold.novel)}; training images "
            f"that also hold other classes are {kept}"
        ]
        if self.validation:
            said.append(
                f"validation on {len(self.validation.episodes)} episodes of {self._job.validate.split} classes "
                f"{', '.join(names[c] for c in self.validation.classes)}"
            )
        return said + self.cautions()

    def cautions(self) -> list[str]:
        if self._job.validate.split != "novel":
            return []
        return [
            "The best weights are selected on the test classes of the fold, as the published programs do: their score "
            "there is an upper bound, not a test."
        ]

    def story(self, method: Method, run: RunDir) -> Story:
        data, seed = self._job.data, self._job.run.seed
        return episodes_page.story(run, method, self.data, self.validation, config=data, seed=seed)

    def facts(self, seen: int, rows: list[dict]) -> dict[str, object]:
        e = self._job.episodes
        return {
            "episodes_seen": seen,
            "scheme": e.scheme,
            "fold": e.fold,
            "novel": self.fold.novel,
            "held_out": held_out(self._job.validate, self.fold),
            "shots": e.shots,
            "novel_in_training": e.novel_in_training,
            "selected_on": self._job.validate.split,
        }
