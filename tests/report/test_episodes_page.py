"""The page of a training on episodes: verdicts against predictions that ignore the image, and the content."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fss.data.batch import EpisodeSpec
from fss.data.dataset import DataConfig
from fss.data.episodes import EpisodeConfig
from fss.data.loader import load
from fss.data.paired_transforms import AugmentConfig
from fss.distributed.context import DistributedContext
from fss.methods.base import Prediction
from fss.nn.exports import ExportHeader, save_export
from fss.report.episode_section import SAMPLE, constant_losses, constant_scores, object_share, verdicts
from fss.report.example_figures import draw_examples
from fss.report.training_page import report
from fss.tracking.run_dir import RunDir
from fss.train.tasks import EpisodeTask
from fss.train.validation.episode_validation import ValidateConfig
from shards.read import ShardSet
from tests.support.episode_toy import Colour
from tests.support.html_outline import Outline
from tests.support.labelled import rectangles

COIN = math.log(2)
pytestmark = pytest.mark.usefixtures("small_figures")

BASELINES = {"loss/main": 0.5, "iou": 0.2, "val/miou": 0.1, "val/fb_iou": 0.45}


class Learner(Colour):
    """The toy with a weight, as if it had learned."""

    def __init__(self) -> None:
        super().__init__()
        self.trainable = nn.Linear(1, 1)

    def chance_levels(self) -> dict[str, float]:
        return {"loss/main": COIN}

    def caveats(self, images_seen: int) -> list[str]:
        return [f"only {images_seen} seen"]


class Constant(Colour):
    """Predicts the same label at every pixel."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def predict(self, query, supports):
        size = self.config.size
        return Prediction(logits=torch.eye(2)[self.label].view(1, 2, 1, 1).expand(1, 2, size, size))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return rectangles(tmp_path_factory.mktemp("set") / "rectangles", [1, 2, 3, 4] * 4)


def task_of(shards: ShardSet, context: DistributedContext, **validate) -> EpisodeTask:
    job = SimpleNamespace(
        data=DataConfig(shards=str(shards.folder), batch=4, workers=0),
        episodes=EpisodeConfig(min_area=50),
        augment=AugmentConfig(),
        validate=ValidateConfig(episodes=6, **validate),
        run=SimpleNamespace(seed=3),
    )
    return EpisodeTask(job, Learner(), context)


def log_of(steps: int, *, loss=0.3, before=0.0, after=0.5, validated=True) -> list[dict]:
    rows = [
        {"step": step, "loss": loss, "loss/main": loss, "iou": 0.5, "speed": {"images_per_s": 9.0, "step_s": 0.1}}
        for step in range(1, steps + 1)
    ]
    if not validated:
        return rows
    first, last = ({"val/miou": score, "val/fb_iou": 0.5 + score / 2} for score in (before, after))
    return [{"step": 0, **first}, *rows, {"step": steps, **last}]


def judged(*, episodes=100, **log) -> list[bool]:
    return [verdict.good for verdict in verdicts(log_of(20, **log), {"loss/main": COIN}, BASELINES, 0.2, episodes)]


def test_a_constant_prediction_costs_as_much_as_the_best_of_many():
    for share in (0.03, 0.2, 0.5):
        tried = [-share * math.log(q) - (1 - share) * math.log(1 - q) for q in np.linspace(0.001, 0.999, 999)]
        found = constant_losses({"loss/main": COIN, "loss/other": 5.0}, share)
        assert found["loss/main"] == pytest.approx(min(tried), abs=1e-5)
        assert found["loss/other"] == 5.0  # nobody knows what that is
    assert constant_losses({"loss/main": COIN}, 0.0)["loss/main"] == 0


def test_the_share_of_the_object_is_that_of_the_masks_that_training_saw(shards, context):
    data = task_of(shards, context).data
    config = DataConfig(shards=str(shards.folder), batch=SAMPLE, workers=0)
    batch = next(iter(load(EpisodeSpec(size=33), data, config, seed=3)))
    masks = batch.query_mask.flatten().tolist()
    expected = masks.count(1) / (masks.count(0) + masks.count(1))
    assert object_share(EpisodeSpec(size=33), data, config, 3) == pytest.approx(expected)


def test_constant_scores_are_the_measured_scores_of_constant_predictions(shards, context):
    validation = task_of(shards, context, classes=2).validation
    found, everywhere, nowhere = constant_scores(validation), validation(Constant(1)), validation(Constant(0))
    assert nowhere["val/miou"] == 0 and 0.1 < everywhere["val/miou"] < 0.5
    assert found["val/miou"] == pytest.approx(everywhere["val/miou"])
    assert found["val/fb_iou"] == pytest.approx(max(everywhere["val/fb_iou"], nowhere["val/fb_iou"]))


def test_a_good_run_is_good_and_each_failing_run_is_not():
    assert judged() == [True, True, True]
    assert judged(loss=0.46) == [False, True, True]  # far below a coin, not below calling everything background
    assert judged(after=0.15) == [True, False, True]  # barely above the class everywhere
    assert judged(before=0.45) == [True, True, False]  # it began nearly as well
    assert judged(episodes=4) == [True, False, False]  # too few to tell
    assert judged(validated=False) == [True]
    assert verdicts([], {"loss/main": COIN}, BASELINES, 0.2, 0) == []


def finished(folder: Path, rows: list[dict]) -> RunDir:
    """A run as training leaves it."""
    run = RunDir(folder)
    run.open({"data.batch": 4, "method.size": 33}, "")
    run.record_environment(1, torch.device("cpu"), "float32")
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_the_page_describes_the_best_weights_and_shows_the_last_validation(shards, context, tmp_path):
    task, method = task_of(shards, context, split="novel"), Learner()
    run = finished(tmp_path / "run", log_of(20))
    for step in (0, 20):
        draw_examples(task.examples(), run.folder / "validation" / f"step_{step:08d}.png")
    header = ExportHeader(scored_by="val/miou", score=0.5, steps=20)
    save_export(run.folder / "best.safetensors", {"x": torch.zeros(1)}, header)
    page = report(run, method, task, context.device)
    assert Outline(page).links == {"curves.png", "validation.png"}
    last = run.folder / "validation" / "step_00000020.png"
    assert (page.parent / "validation.png").read_bytes() == last.read_bytes()
    assert cv2.imread(str(page.parent / "curves.png")).std() > 10
    text = page.read_text()
    assert "of step 20: the highest val/miou, 50.0%, of 2 validations on 6 episodes of novel classes" in text
    assert "upper bound, not a test" in text and "only 80 seen" in text
    assert "episodes seen" in text and "episodes / s" in text and "images seen" not in text
    assert "queue" not in text and "Step 20: the first 4" in text


def test_the_page_of_a_run_without_validation(shards, context, tmp_path):
    run = finished(tmp_path / "run", log_of(3, validated=False))
    page = report(run, Learner(), task_of(shards, context, split="none"), context.device)
    assert Outline(page).links == {"curves.png"}
    text = page.read_text()
    assert "validate.split is none" in text and "val/miou" not in text
