"""What a training run does beside its steps, by what its method consumes: data, measurements, what is told of it."""

import abc
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from fss.data.batch import EpisodeSpec, ViewSpec
from fss.data.episode_feed import EpisodeData
from fss.data.episodes import training_source
from fss.data.feed import DataConfig
from fss.data.folds import fold_of
from fss.engine.dist import World
from fss.engine.probe import probe, probe_crops
from fss.engine.reports import episodes as episodes_page
from fss.engine.reports import views as views_page
from fss.engine.reports.page import Story
from fss.engine.run import RunDir, digest
from fss.engine.validate import Validation, held_out
from fss.methods.base import Method
from shards.read import ShardSet
from shards.synthetic import embed

EMBEDDED_IMAGES = 800


def open_shards(config: DataConfig, world: World) -> ShardSet:
    """The shards that were named; the embedded set, packed at first use, where none were. Collective."""
    if config.shards:
        return ShardSet(config.shards, cache=config.cache)
    folder = Path(os.environ.get("FSS_DATA", "data")) / "synthetic"
    world.on_main(lambda: embed(folder, images=EMBEDDED_IMAGES, processes=min(os.cpu_count() or 1, 8)))
    return ShardSet(folder)


class Task(abc.ABC):
    """The part of a run that depends on what its method learns from. Made alike on every rank."""

    selects_by: ClassVar[str | None] = None
    """The measurement whose highest value marks the best weights."""
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
    def __init__(self, job: Any, method: Method, world: World) -> None:
        """job: one of fss.config's. Raises UserError or ShardError where job, shards and method do not fit."""

    @abc.abstractmethod
    def measure(self, method: Method) -> dict[str, float]:
        """What is measured at times, by name; empty where there is nothing to measure on. Collective."""

    def picture(self, method: Method, run: Path, done: int) -> Path | None:
        """A PNG in the folder of the run of what the method does after `done` steps. For one rank."""
        return None

    def identity(self) -> dict[str, object]:
        """What decides the result beside the configuration and the training shards."""
        return {}

    def opening(self) -> list[str]:
        """Sentences for the start of a run."""
        return []

    def cautions(self) -> list[str]:
        """Sentences on what keeps the result from being compared, whatever the method."""
        return []

    @abc.abstractmethod
    def story(self, method: Method, run: RunDir) -> Story:
        """This task's part of the page of a finished run, its pictures drawn. For one rank."""

    @abc.abstractmethod
    def facts(self, seen: int, rows: list[dict]) -> dict[str, object]:
        """What weights exported after `seen` samples and the logged `rows` should say of their training."""


class ViewTask(Task):
    """Contrastive pretraining on all images; measured by a kNN probe of labelled crops."""

    unit = "images"

    def __init__(self, job: Any, method: Method, world: World) -> None:
        self._job = job
        self.shards = self.data = open_shards(job.data, world)
        self.samples = len(self.shards)
        self.crops = probe_crops(job.probe, self.shards)
        self.every = job.probe.every
        self._world = world

    def measure(self, method: Method) -> dict[str, float]:
        if self.crops is None:
            return {}
        return probe(method, self.crops, self._world.peers, self._world.device, k=self._job.probe.k)

    def story(self, method: Method, run: RunDir) -> Story:
        data, seed = self._job.data, self._job.run.seed
        return views_page.story(run.report, run.rows(), method, self.shards, self.crops, data=data, seed=seed)

    def facts(self, seen: int, rows: list[dict]) -> dict[str, object]:
        knn = next((row["knn/top1"] for row in reversed(rows) if "knn/top1" in row), None)
        return {"images_seen": seen, "knn": knn}


class EpisodeTask(Task):
    """Learning from episodes of a fold's base classes; measured by episodes of classes that are left out."""

    unit = "episodes"

    def __init__(self, job: Any, method: Method, world: World) -> None:
        self._job = job
        self.shards = open_shards(job.data, world)
        manifest, episodes = self.shards.manifest, job.episodes
        self.fold = fold_of(episodes.scheme, episodes.fold, manifest, episodes.novel)
        self.source = training_source(manifest, self.fold, episodes, job.run.seed, held_out(job.validate, self.fold))
        self.samples = len(self.source)
        self.data = EpisodeData(shards=self.shards, source=self.source, augment=job.augment)
        self.validation = None
        self.every = 0
        if job.validate.split != "none":
            self.validation = Validation(
                job.validate, self.fold, self.shards, episodes, size=method.config.size, world=world,
                cache=job.data.cache,
            )    # fmt: skip
            self.every = job.validate.every
            self.selects_by = "val/miou"

    def measure(self, method: Method) -> dict[str, float]:
        return self.validation(method) if self.validation else {}

    def picture(self, method: Method, run: Path, done: int) -> Path | None:
        return self.validation.picture(method, run / "validation", done) if self.validation else None

    def identity(self) -> dict[str, object]:
        if self.validation is None:
            return {}
        return {"validate.manifest": digest(asdict(self.validation.shards.manifest))}

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


TASKS: dict[type, type[Task]] = {ViewSpec: ViewTask, EpisodeSpec: EpisodeTask}
"""What a method consumes -> what a run of it does."""
