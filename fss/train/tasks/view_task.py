"""Training runs of methods that are pretrained on augmented views."""

from functools import partial
from typing import Any, Protocol

from fss.data.shard_sets import open_shard_set
from fss.data.view_dataset import ViewDataConfig
from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RunConfig
from fss.methods.base import Method, ViewMethod
from fss.train.tasks.task import Task, wrong_kind
from fss.train.validation.knn_probe import ProbeConfig, probe, probe_crops


class ViewJob(Protocol):
    """The options that the task reads."""

    @property
    def run(self) -> RunConfig:
        """The group `run`."""
        ...

    @property
    def data(self) -> ViewDataConfig:
        """The group `data`."""
        ...

    @property
    def probe(self) -> ProbeConfig:
        """The group `probe`."""
        ...


class ViewTask(Task):
    """Contrastive pretraining on all images; measured by a kNN probe of labelled crops."""

    kind = "pretrain"
    unit = "images"
    method: ViewMethod

    def __init__(self, job: ViewJob, method: Method, context: DistributedContext) -> None:
        if not isinstance(method, ViewMethod):
            raise wrong_kind(method, ViewMethod)
        self.job = job
        self.method = method
        self.shards = self.data = open_shard_set(job.data, context.on_main)
        self.samples = len(self.shards)
        self.crops = probe_crops(job.probe, self.shards)
        self.measure_every = job.probe.every
        self._context = context

    def measure(self) -> dict[str, float]:
        """The values of the kNN probe, see `probe`; empty without labelled crops. Collective."""
        if self.crops is None:
            return {}
        context = self._context
        return probe(
            self.method,
            self.crops,
            context.collectives,
            context.device,
            k=self.job.probe.k,
            report_progress=partial(context.report_progress, "probing"),
        )

    def export_metadata(self, seen: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The number of images seen, and the last kNN accuracy."""
        knn = next((row["knn/top1"] for row in reversed(rows) if "knn/top1" in row), None)
        return {"images_seen": seen, "knn": knn}
