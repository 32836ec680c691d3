"""The log: trackers receive every value once, whatever the starts, and show the values that were logged."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fss.errors import ConfigError
from fss.nn.exports import ExportHeader, save_export
from fss.tracking.log import Log, LogConfig
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import RunInfo
from tests.support.wandb_file import artifacts, config, history, kinds

ABOUT = RunInfo(
    kind="meta",
    chance_levels={"loss": 0.5},
    config={"run": {"seed": 0}, "method": {"name": "toy"}, "episodes": {"scheme": "coco", "fold": 2, "shots": 5}},
)


@pytest.fixture
def run(tmp_path) -> RunDir:
    folder = RunDir(tmp_path / "run")
    folder.open({}, "")
    return folder


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def started(run: RunDir, **options) -> Log:
    return Log(run, LogConfig(**options), active=True, about=ABOUT, total=10, unit="episodes")


def lines(log: Log, *steps: int) -> None:
    for step in steps:
        log.row({"step": step, "loss": float(step)})
        log.distributions(step, lambda step=step: {"age": torch.arange(step + 2.0)})
    log.close()


def offline(run: RunDir) -> list[Path]:
    return sorted(run.folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)


def losses(path: Path) -> dict[int, float]:
    return {row["_step"]: row["loss"] for row in history(path) if "loss" in row}


def board(run: RunDir) -> EventAccumulator:
    every = {"scalars": 0, "histograms": 0}
    return EventAccumulator(str(run.folder / "tensorboard"), size_guidance=every).Reload()


def test_a_resumed_run_sends_nothing_twice_and_keeps_its_id(run):
    """It had sent step 3 when it was killed, and resumes from its checkpoint of step 2."""
    trackers = {"wandb": "offline", "tensorboard": True}
    lines(started(run, **trackers), 1, 2, 3)
    (run.checkpoints / "step_00000002").mkdir(parents=True)
    run.rewind(2)
    lines(started(run, **trackers), 3, 4)
    first, second = offline(run)
    assert first.name == second.name, "one id"
    assert losses(first) == {1: 1, 2: 2, 3: 3} and losses(second) == {4: 4}
    assert kinds(second)["age"] == "histogram"
    events = board(run)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [event.step for event in events.Histograms("age")] == [1, 2, 3, 4]
    assert {event.value for event in events.Scalars("chance_level/loss")} == {0.5}
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4], "the levels of guessing are for the trackers alone"
    assert "chance_level/loss" not in run.rows()[0]


def test_a_start_that_left_no_checkpoint_is_another_run(run):
    """It may be repeated with other options."""
    lines(started(run, wandb="offline", tensorboard=True), 1)
    lines(started(run, wandb="offline", tensorboard=True), 1, 2)
    first, second = offline(run)
    assert first.name != second.name and losses(second) == {1: 1, 2: 2}
    events = board(run)
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_slow_data_are_named_once_and_not_while_the_workers_start(run, capsys):
    about = replace(ABOUT, chance_levels={})
    config = LogConfig(wandb="off")
    log = Log(run, config, active=True, about=about, total=9, unit="images", slow_data="raise data.workers")
    for step, wait in enumerate((0.9, 0.05, 0.31, 0.4), 1):
        log.row({"step": step, "speed": {"images_per_s": 200.0, "step_s": 0.1, "data_wait": wait}})
        shown = capsys.readouterr().out
        assert ("note: data wait 31% at 200 images/s: raise data.workers" in shown) == (step == 3)
        assert ("note:" in shown) == (step == 3)
    log.close()


def test_pictures_and_tables_reach_tensorboard(run):
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[..., 2] = 255  # red, as OpenCV writes it
    cv2.imwrite(str(run.folder / "sheet.png"), picture)
    log = started(run, wandb="off", tensorboard=True)
    log.picture(4, "sheet", run.folder / "sheet.png")
    log.table(4, "classes", [{"class": "cat", "IoU": 0.25, "seen": None, "query": picture}])
    log.close()
    events = board(run)
    (image,) = events.Images("sheet")
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert image.step == 4 and (decoded == picture).all()
    (text,) = events.Tensors("classes/text_summary")
    assert b"| cat | 0.25 |  |" in text.tensor_proto.string_val[0] and b"query" not in text.tensor_proto.string_val[0]


@pytest.mark.parametrize("keeping", ["none", "reference", "upload"])
def test_exports_in_wandb(run, keeping):
    path = run.folder / "toy.safetensors"
    save_export(path, {"x": torch.zeros(3)}, ExportHeader(method="toy", steps=4))
    log = started(run, wandb="offline", artifacts=keeping)
    log.export(4, path)
    log.close()
    (wandb_file,) = offline(run)
    found = artifacts(wandb_file, used=False)
    assert found == ({} if keeping == "none" else {next(iter(found)): ["latest", "toy"]})
    assert keeping == "none" or next(iter(found)).startswith("toy-")
    assert config(wandb_file)["inputs"] == {}


def test_nothing_is_measured_without_a_tracker(run):
    def measured() -> dict:
        raise AssertionError("there is no tracker")

    log = started(run, wandb="off")
    log.distributions(1, measured)
    log.row({"step": 1, "loss": 1.0})
    log.close()
    assert json.loads(run.metrics.read_text()) == {"step": 1, "loss": 1.0}
    assert not list(run.folder.glob("*.sent"))


def test_the_console_shows_losses_and_scores_of_methods_that_the_catalogue_does_not_know(run, capsys):
    log = started(run, wandb="off")
    log.row({"step": 1, "aux/loss": 0.25, "own/top1": 0.5, "own/other": 0.75})
    log.close()
    printed = capsys.readouterr().out
    assert "aux/loss 0.25" in printed and "own/top1 0.5" in printed and "own/other" not in printed


def test_tensorboard_that_is_not_installed_is_reported_before_anything_runs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log\.tensorboard is true but TensorBoard is not installed: pip install"):
        LogConfig(tensorboard=True)
