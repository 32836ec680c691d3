"""Runs of methods that learn from views of images."""

from functools import partial
from typing import Any

from fss.data.shard_sets import open_shard_set
from fss.distributed.context import DistributedContext
from fss.methods.base import Method
from fss.train.tasks.task import Task
from fss.train.validation.knn_probe import probe, probe_crops


class ViewTask(Task):
    """Contrastive pretraining on all images; measured by a kNN probe of labelled crops."""

    kind = "pretrain"
    unit = "images"

    def __init__(self, job: Any, method: Method, context: DistributedContext) -> None:
        self.job = job
        self.shards = self.data = open_shard_set(job.data, context.on_main)
        self.samples = len(self.shards)
        self.crops = probe_crops(job.probe, self.shards)
        self.every = job.probe.every
        self._context = context

    def measure(self, method: Method) -> dict[str, float]:
        if self.crops is None:
            return {}
        context = self._context
        return probe(
            method,
            self.crops,
            context.collectives,
            context.device,
            k=self.job.probe.k,
            report_progress=partial(context.report_progress, "probing"),
        )

    def export_metadata(self, seen: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        knn = next((row["knn/top1"] for row in reversed(rows) if "knn/top1" in row), None)
        return {"images_seen": seen, "knn": knn}
