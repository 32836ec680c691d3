"""Evaluations of a toy method, and run directories as an evaluation leaves them."""

import json
import statistics
from pathlib import Path

import torch
import yaml
from torch import Tensor

from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.plan import EvalConfig, EvaluationPlan, FoldConfig, plan_evaluation
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.record import EpisodeResult
from fss.methods.base import Features
from fss.nn.exports import ExportHeader
from fss.tracking.run_dir import RunDir
from shards.read import ShardSet
from tests.support.contexts import joined
from tests.support.episode_toy import Colour

SCORING = {"size": 225, "resize": "exact", "resolution": "original", "labels": "own", "ignore_255": True}


class Near(Colour):
    """A toy with a map: how near each pixel's colour is to the supports'."""

    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        colour = torch.stack([support["class"] for support in supports]).mean(0)
        distance = (query["colour"] - colour).square().sum(1)[0]  # [S, S]
        return {"near": 1 - distance / distance.max()}

    def caveats(self, images_seen: int) -> list[str]:
        return [f"{images_seen} episodes are few."]


def planned(shards: ShardSet, shots: int = 1, **options) -> EvaluationPlan:
    """A plan of ten episodes for each of two seeds, over two classes of `rectangles`."""
    evaluation = EvalConfig(**{"episodes": 10, "seeds": [0, 1], **options})
    folds = FoldConfig(scheme="list", novel=["green", "blue"], shots=shots)
    return plan_evaluation(folds, evaluation, ExportHeader(), shards.manifest, 33)


def predictor_of(what: EvaluationPlan) -> EpisodePredictor:
    """The predictor of the toy on the CPU, as the plan scores it."""
    return EpisodePredictor(Near(), device=torch.device("cpu"), size=what.scoring.size, resize=what.scoring.resize)


def measured(shards: ShardSet, what: EvaluationPlan) -> list[EpisodeResult]:
    """The results of a plan under the toy."""
    context = joined()
    try:
        return measure(predictor_for(Near(), what.scoring, context), shards, what.episodes, what.scoring, context)
    finally:
        context.close()


def opened(folder: Path) -> RunDir:
    """A new run directory that two ranks have started."""
    run = RunDir(folder)
    run.open({}, "")
    run.record_environment(2, torch.device("cpu"), "float32")
    return run


def evaluated(
    folder: Path,
    method: str,
    ious: dict[str, float],
    *,
    fold: int = 0,
    drawn: str = "a",
    options: dict | None = None,
    scoring: dict | None = None,
    caveats: list[str] | None = None,
    flops: int | None = None,
) -> Path:
    """A run directory as launch/evaluate.py leaves it, of one seed. drawn: digest of its episodes."""
    (folder / "report").mkdir(parents=True)
    mean = statistics.fmean(ious.values())
    results = {
        "protocol": {"data": "voc, 9 images", "fold": str(fold)},
        "scoring": SCORING | (scoring or {}),
        "parameters": {"trained": 5_000_000, "frozen": 25_000_000},
        "miou": {"mean": mean, "std": None},
        "fb_iou": {"mean": 0.5, "std": None},
        "classes": {name: {"iou": {"mean": iou, "std": None}} for name, iou in ious.items()},
        "episodes": 1440,
        "seconds_per_episode": 0.25,
        "encoder_passes_per_image": 1.0,
    }
    cell = {"method": method, "scheme": "pascal", "fold": fold, "shots": 1, "backbone": "resnet50", "size": 473}
    run = {"episodes": drawn, "method.name": method, "method.backbone": "resnet50", "method.size": 473}
    run |= {f"method.{key}": value for key, value in (options or {}).items()}
    report = {"figures": {"cell": cell}, "caveats": caveats or []}
    (folder / "results.json").write_text(json.dumps(results | ({"flops": flops} if flops else {})))
    write_environment(folder, 1, "cpu", 1)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {}, "method": {}, "weights": None}))
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "report" / "report.json").write_text(json.dumps(report))
    (folder / "report" / "worst.png").write_bytes(b"PNG")
    return folder


def write_environment(folder: Path, ranks: int, device: str, threads: int) -> None:
    """Record a start on `ranks` of `device`, with `threads` a rank."""
    environment = {"world_size": ranks, "device": device, "threads": threads}
    (folder / "environment.jsonl").write_text(json.dumps(environment) + "\n")
