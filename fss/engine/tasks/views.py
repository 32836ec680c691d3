"""Runs of methods that learn from views of images."""

from functools import partial
from typing import Any

from fss.engine.dist import World
from fss.engine.reports import views as views_page
from fss.engine.reports.page import Story
from fss.engine.run import RunDir
from fss.engine.tasks.task import Task, open_shards
from fss.engine.validation.views import probe, probe_crops
from fss.methods.base import Method


class ViewTask(Task):
    """Contrastive pretraining on all images; measured by a kNN probe of labelled crops."""

    kind = "pretrain"
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
        world = self._world
        return probe(
            method, self.crops, world.peers, world.device, k=self._job.probe.k, alive=partial(world.alive, "probing")
        )

    def story(self, method: Method, run: RunDir) -> Story:
        data, seed = self._job.data, self._job.run.seed
        return views_page.story(run.report, run.rows(), method, self.shards, self.crops, data=data, seed=seed)

    def facts(self, seen: int, rows: list[dict]) -> dict[str, object]:
        knn = next((row["knn/top1"] for row in reversed(rows) if "knn/top1" in row), None)
        return {"images_seen": seen, "knn": knn}
