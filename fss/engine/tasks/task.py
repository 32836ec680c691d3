"""What every training run has beside its steps: data, measurements, what is told of it."""

import abc
import os
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fss.data.feed import DataConfig
from fss.engine.dist import World
from fss.engine.reports.page import Story
from fss.engine.run import RunDir, digest
from fss.engine.viewers.viewer import Drawn, Kind
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
    def __init__(self, job: Any, method: Method, world: World) -> None:
        """job: one of fss.config's. Raises UserError or ShardError where job, shards and method do not fit."""

    @abc.abstractmethod
    def measure(self, method: Method) -> dict[str, float]:
        """What is measured at times, by name; empty where there is nothing to measure on. Collective."""

    def picture(self, method: Method, run: Path, done: int) -> Drawn | None:
        """What the method does after `done` steps, as a PNG in the folder of the run and as rows. For one rank."""
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


class Validating(Protocol):
    """Scores a method, and draws what it does."""

    shards: ShardSet

    def __call__(self, method: Method) -> dict[str, float]:
        """What is measured, by name. Collective."""

    def picture(self, method: Method, folder: Path, done: int) -> Drawn:
        """What it does after `done` steps, as a PNG in `folder` and as rows."""


class ValidatedTask(Task):
    """A task that is measured by its `validation`, where it has one."""

    validation: Validating | None = None

    def measure(self, method: Method) -> dict[str, float]:
        return self.validation(method) if self.validation else {}

    def picture(self, method: Method, run: Path, done: int) -> Drawn | None:
        return self.validation.picture(method, run / "validation", done) if self.validation else None

    def identity(self) -> dict[str, object]:
        if self.validation is None:
            return {}
        return {"validate.manifest": digest(self.validation.shards.manifest.content())}
