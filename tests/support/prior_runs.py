"""Run directories as contrastive pretraining leaves them."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch

from fss.data.view_dataset import ViewDataConfig
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from fss.tracking.run_dir import RunDir
from fss.train.tasks import ViewTask
from fss.train.validation.knn_probe import ProbeConfig
from shards.read import ShardSet

SMALL = {"backbone": "resnet18", "queue": 63, "local_queue": 31, "view_size": 32, "patch_size": 32, "regions": 4}
CHANCE_LEVELS = {"loss": math.log(64), "loss/global": math.log(64), "top1/global": 1 / 64}


def small_prior(**options) -> PriorExtractor:
    """A prior extractor that a test can afford."""
    return PriorExtractor(PriorConfig(**SMALL | options))


def log_of(steps: int, *, loss=1.0, top1=0.6, spread=0.8, fill=1.0, knn=0.5) -> list[dict]:
    """Rows as a run logs them, kNN rows at both ends."""
    probes = [
        {"step": step, "knn/top1": value, "knn/chance_level": 0.1, "knn/images": 400.0, "knn/unreadable": 0.0}
        for step, value in ((0, 0.2), (steps, knn))
    ]
    rows = [
        {
            "step": step,
            "epoch": step / 10,
            "lr": 0.03,
            "grad_norm": 1.0,
            "loss": loss,
            "loss/global": loss,
            "top1/global": top1,
            "positive/global": 0.9,
            "negative/global": 0.1,
            "spread/global": spread,
            "fill/global": min(fill, step / 10),
            "speed": {"images_per_s": 100.0 + step, "step_s": 0.25, "data_wait": 0.01, "peak_memory_mb": 500.0},
        }
        for step in range(1, steps + 1)
    ]
    return [probes[0], *rows, probes[1]]


def run_of(folder: Path, method: PriorExtractor) -> RunDir:
    """A run of `method` that has logged thirty steps."""
    run = RunDir(folder)
    method_options = {f"method.{name}": value for name, value in asdict(method.config).items()}
    run.open({"data.batch": 4, "data.backend": "cv2", "run.seed": 0, **method_options}, "")
    run.record_environment(1, torch.device("cpu"), "float32")
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in log_of(30)))
    return run


def task_of(shards: ShardSet, method: PriorExtractor) -> ViewTask:
    """The task of such a run."""
    data = ViewDataConfig(shards=str(shards.folder), batch=4)
    job = SimpleNamespace(data=data, probe=ProbeConfig(size=32), run=SimpleNamespace(seed=0))
    return ViewTask(job, method, SimpleNamespace(on_main=lambda action: action()))
