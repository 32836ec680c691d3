"""`launch/train_base.py`: recipes, what a run leaves, equal results on more ranks, refusals."""

import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from fss.config import CONFIGS
from fss.nn.weights import load_base
from launch.train_base import main
from tests.support import launching
from tests.support.labelled import rectangles
from tests.support.launching import BASE, PLACE, assert_trained_alike, called, refusal, rows
from tests.support.ranks import on_ranks

RECIPES = sorted((CONFIGS / "base").glob("*.yaml"))


@pytest.fixture(scope="session")
def coloured(tmp_path_factory) -> Path:
    """20 images of four classes; fold 0 of the interleaved scheme has the class that is in all of them novel."""
    return rectangles(tmp_path_factory.mktemp("coloured") / "rectangles", [1, 2, 3, 4] * 5).folder


launch, refused, job = partial(called, main), partial(refusal, main), partial(launching.job, BASE)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_takes_a_step(capsys, tmp_path, coloured, recipe):
    stem = yaml.safe_load(recipe.read_text())["method"].get("stem", "torchvision")
    code, _, err = launch(
        capsys,
        "--config",
        str(recipe),
        *launching.job(PLACE, coloured, tmp_path / "run"),
        *"--optim.steps 1 --episodes.scheme interleaved --method.size 33".split(),
        *"--method.backbone resnet18 --data.workers 0 --data.batch 2 --validate.fraction 0.3".split(),
    )
    assert code == 0, err
    assert load_base(tmp_path / "run" / "base.safetensors")[1].stem == stem


def test_what_a_run_leaves_behind(capsys, tmp_path, coloured):
    folder = tmp_path / "run"
    words = job(coloured, folder, "--validate.every", "5", "--optim.steps", "10")
    code, out, err = launch(capsys, *words, "--run.report", "true")
    assert code == 0, err
    assert "novel, and background here: red" in out and "holds them out: blue" in out
    logged = rows(folder)
    trained = [row for row in logged if "loss" in row]
    assert {"loss", "accuracy", "lr", "epoch", "grad_norm"} <= trained[0].keys()
    validated = {row["step"]: row["val/miou"] for row in logged if "val/miou" in row}
    assert list(validated) == [0, 5, 10]
    assert {"val/iou/green", "val/iou/yellow"} <= next(row for row in logged if "val/miou" in row).keys()
    assert trained[-1]["loss"] < trained[0]["loss"] / 2

    for name in ("base", "best"):
        tensors, header = load_base(folder / f"{name}.safetensors")
        assert header.classes == {"2": "green", "4": "yellow"}
        assert (header.scheme, header.fold, header.backbone) == ("interleaved", 0, "resnet18")
        assert header.novel == [1] and header.held_out == [3]
        assert tensors["head.classify.weight"].shape == (3, 512, 1, 1)
    assert header.steps in validated and header.score == max(validated.values())
    with safe_open(folder / "base.safetensors", framework="pt") as weights:
        known = weights.metadata()
    assert (known["steps"], known["images_seen"]) == ("10", "40")
    assert float(known["best_miou"]) == max(validated.values())

    page = json.loads((folder / "report" / "report.json").read_text())
    assert [picture["file"] for picture in page["pictures"]] == ["curves.png", "classes.png", "validation.png"]
    assert all((folder / "report" / picture["file"]).exists() for picture in page["pictures"])
    assert len(page["verdicts"]) == 3 and len(list((folder / "validation").glob("step_*.png"))) == len(validated)

    again, out, _ = launch(capsys, *words)
    assert again == 0 and "resumed at step 10" in out
    started = tmp_path / "warm"
    weights = str(folder / "base.safetensors")
    code, out, err = launch(
        capsys,
        *words,
        "--run.dir",
        str(started),
        "--run.init_from",
        weights,
        *"--optim.steps 1 --episodes.fold 1".split(),
    )
    assert code == 0 and "which was trained on other classes" in out, err


def test_without_validation_it_learns_from_all_images_and_there_is_no_best(capsys, tmp_path, coloured):
    folder = tmp_path / "run"
    words = ["--validate.fraction", "0", "--validate.split", "novel", "--optim.steps", "1", "--run.report", "true"]
    code, out, err = launch(capsys, *job(coloured, folder, *words))
    assert code == 0, err
    assert "3 base classes to learn on 20 images" in out
    assert not (folder / "best.safetensors").exists()
    assert "none chosen" in (folder / "report" / "report.md").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_two_ranks_train_as_one_does(capsys, tmp_path, coloured):
    """Dropout is drawn by each rank for itself, so it is switched off; what is left of a difference is rounding."""
    words = ["--method.dropout", "0", "--optim.steps", "3"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(capsys, *job(coloured, one, *words))[0] == 0
    on_ranks(2, main, job(coloured, two, *words, "--run.world_size", "2"), timeout=240)
    assert_trained_alike(one, two, "base.safetensors", logged=(2e-2, 1e-3), weights=(1e-2, 1e-3))


def test_what_does_not_fit_is_refused(capsys, tmp_path, coloured):
    def message_of(*words: str) -> str:
        return refused(capsys, *job(coloured, tmp_path / "run", *words))

    assert "episodes.fold is 4" in message_of("--episodes.fold", "4")
    assert "20 classes of PASCAL VOC" in message_of("--episodes.scheme", "pascal")
    assert "validate.classes is 3" in message_of("--validate.classes", "3")
    assert "lower validate.fraction" in message_of("--validate.fraction", "0.99")
    assert "keeps none of the 20 images" in message_of("--validate.fraction", "1e-9")
    assert "absent.pth" in message_of("--method.backbone_weights", str(tmp_path / "absent.pth"))
    assert "did you mean method.head_lr" in message_of("--method.had_lr", "3")
    assert "unknown key episodes.shots" in message_of("--episodes.shots", "5")
    assert "at least 2 images" in message_of("--data.batch", "1")
    assert "method.name qgnet is not for" in message_of("--method", "qgnet")


def test_precision_and_a_resume_under_other_conditions(capsys, tmp_path, coloured):
    """tf32 is float32 on a CPU; both are the same run, and another torch is one line."""
    words = "--optim.steps", "2", "--validate.split", "none"
    for precision in ("tf32", "float32"):
        code, out, err = launch(capsys, *job(coloured, tmp_path / precision, *words, "--run.precision", precision))
        assert code == 0, err
        assert ("tf32 (float32 on cpu); run directory" if precision == "tf32" else "float32; run directory") in out
    weights = [load_file(tmp_path / precision / "base.safetensors") for precision in ("tf32", "float32")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])

    folder = tmp_path / "tf32"
    environment = folder / "environment.jsonl"
    started = json.loads(environment.read_text())
    assert started["precision"] == "tf32" and not started["tf32_matmul"]
    environment.write_text(json.dumps(started | {"packages": started["packages"] | {"torch": "1.13.1"}}) + "\n")
    code, out, err = launch(
        capsys, *job(coloured, folder, *words, "--run.precision", "float32"), "--run.report", "true"
    )
    assert code == 0, err
    assert "resumed at step 2" in out and "note: since the last start torch from 1.13.1 to" in out
    assert "run.precision is 'float32' there and 'bf16' here" in refused(
        capsys, *job(coloured, folder, *words, "--run.precision", "bf16")
    )
    report = json.loads((folder / "report" / "report.json").read_text())
    assert {"precision", "tf32_matmul", "tf32_cudnn", "deterministic", "device", "torch"} <= report[
        "environment"
    ].keys()
