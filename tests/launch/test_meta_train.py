"""`launch/meta_train.py`: recipes, what a run leaves, equal results on more ranks and after kills, refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fss.collectives import SingleProcess
from fss.config import CONFIGS
from fss.methods.base_learner import BaseLearner, BaseLearnerConfig
from fss.nn.exports import save_export
from launch.meta_train import main
from tests.support import launching
from tests.support.launching import (
    META,
    META_LAUNCHER,
    PLACE,
    STEPS,
    Launched,
    assert_same_run,
    assert_trained_alike,
    called,
    kill_inside_a_save,
    refusal,
    rows,
)
from tests.support.ranks import on_ranks
from tests.support.wandb_file import history

RECIPES = sorted((CONFIGS / "meta").glob("*.yaml"))
launch, refused, job = partial(called, main), partial(refusal, main), partial(launching.job, META)


@pytest.fixture(scope="session")
def base_learner(tmp_path_factory) -> Callable[[str, str], Path]:
    """(stem, validate.split) -> the export of a base learner with random weights for fold 1 of `coloured`."""
    folder = tmp_path_factory.mktemp("base")

    def make(stem: str, split: str) -> Path:
        path = folder / f"{stem}_{split}.safetensors"
        if not path.exists():
            learner = BaseLearner(BaseLearnerConfig(backbone="resnet18", stem=stem))
            classes = {1: "red", 3: "blue", 4: "yellow"} if split == "novel" else {1: "red", 4: "yellow"}
            learner.set_classes(classes, SingleProcess())
            save_export(path, *learner.export())
        return path

    return make


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_takes_a_step(capsys, tmp_path, coloured, base_learner, recipe):
    content = yaml.safe_load(recipe.read_text())
    method = content["method"]
    match method["name"]:
        case "qgnet":
            words = ["--method.prior_map", "off", "--method.dim", "8"]
        case "bam" | "msanet":
            split = content.get("validate", {}).get("split", "base")
            weights = base_learner(method.get("stem", "torchvision"), split)
            words = ["--method.base_weights", str(weights), "--method.dim", "8"]
        case "mshnet":
            words = ["--method.width", "4"]
    code, _, err = launch(
        capsys,
        "--config",
        str(recipe),
        *launching.job(PLACE, coloured, tmp_path / "run"),
        *"--optim.steps 1 --episodes.scheme interleaved --episodes.fold 1 --episodes.min_area 50".split(),
        *"--data.workers 0 --method.size 33 --method.backbone resnet18".split(),
        *words,
        "--validate.episodes",
        "1",
    )
    assert code == 0, err
    assert (tmp_path / "run" / f"{method['name']}.safetensors").exists()


def test_what_a_run_leaves_behind(capsys, tmp_path, coloured, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no account, as on a new machine
    folder = tmp_path / "run"
    words = job(coloured, folder, "--validate.every", "2")
    code, out, err = launch(capsys, *words, "--log.wandb", "auto", "--run.report", "true")
    assert code == 0, err
    assert "novel: red" in out and "base classes blue" in out, "classes are named before the first step"
    trained = [row for row in rows(folder) if "loss" in row]
    assert {"loss/main", "loss/inner", "lr", "epoch"} <= trained[0].keys()
    assert trained[-1]["epoch"] == 4 * 4 / 8, "red is novel and blue validates: 8 images show green or yellow"
    validated = {row["step"]: row["val/miou"] for row in rows(folder) if "val/miou" in row}
    assert list(validated) == [0, 2, 4]

    with safe_open(folder / "qgnet.safetensors", framework="pt") as weights:
        facts = weights.metadata()
    assert (facts["method"], facts["scheme"], facts["fold"], facts["shots"]) == ("qgnet", "interleaved", "0", "1")
    assert (facts["steps"], facts["episodes_seen"], facts["selected_on"]) == ("4", "16", "base")
    assert json.loads(facts["novel"]) == [1] and json.loads(facts["held_out"]) == [3]
    with safe_open(folder / "best.safetensors", framework="pt") as weights:
        best = weights.metadata()
    assert float(best["score"]) == max(validated.values()) == validated[int(best["steps"])]

    (offline,) = folder.glob("wandb/offline-run-*/*.wandb")
    logged = history(offline)
    assert [row["val/miou"] for row in logged if "val/miou" in row] == list(validated.values())
    assert sum("validation/picture/path" in row for row in logged) == 3
    assert len(list((folder / "validation").glob("step_*.png"))) == 3
    assert (folder / "report" / "index.html").exists()

    again, out, _ = launch(capsys, *words)
    assert again == 0 and "resumed at step 4" in out
    started = tmp_path / "warm"
    code, out, err = launch(
        capsys, *words, "--run.dir", str(started), "--run.init_from", str(folder / "qgnet.safetensors")
    )
    assert code == 0 and f"start from {folder / 'qgnet.safetensors'}" in out, err


@pytest.mark.usefixtures("no_pictures")
def test_selection_on_the_test_classes_is_said_and_marked(capsys, tmp_path, coloured):
    code, out, err = launch(capsys, *job(coloured, tmp_path / "run", "--validate.split", "novel", "--optim.steps", "1"))
    assert code == 0, err
    assert "selected on the test classes" in out
    with safe_open(tmp_path / "run" / "best.safetensors", framework="pt") as weights:
        assert weights.metadata()["selected_on"] == "novel"


@pytest.mark.usefixtures("no_pictures")
def test_without_validation_there_is_no_best(capsys, tmp_path, coloured):
    code, _, err = launch(capsys, *job(coloured, tmp_path / "run", "--validate.split", "none", "--optim.steps", "1"))
    assert code == 0, err
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.usefixtures("no_pictures")
def test_two_ranks_train_as_one_does(capsys, tmp_path, coloured):
    """Dropout is drawn by each rank for itself, so it is switched off; what is left of a difference is rounding."""
    words = ["--method.reduction_dropout", "0", "--method.classifier_dropout", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(capsys, *job(coloured, one, *words))[0] == 0
    on_ranks(2, main, job(coloured, two, *words, "--run.world_size", "2"), timeout=240)
    assert_trained_alike(one, two, "qgnet.safetensors", logged=(1e-4, 1e-5), weights=(1e-3, 1e-5))


def long(folder: Path, run_dir: Path) -> list[str]:
    steps = ["--optim.steps", str(STEPS), "--checkpoint.every", "2", "--validate.every", "3"]
    return job(folder, run_dir, *steps, "--data.workers", "1")


@pytest.mark.usefixtures("no_pictures")
def test_killed_inside_a_save_it_ends_where_it_would_have_ended(capsys, tmp_path, coloured):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch(capsys, *long(coloured, whole))[0] == 0
    kill_inside_a_save(Launched(1, *long(coloured, cut), launcher=META_LAUNCHER), cut)
    assert launch(capsys, *long(coloured, cut))[0] == 0
    assert_same_run(whole, cut)


@pytest.mark.usefixtures("no_pictures")
def test_a_validation_that_a_signal_cut_is_made_up_for(capsys, tmp_path, coloured, monkeypatch):
    """Whoever asks to stop does not wait for a validation; the run that goes on makes it first."""
    from fss.train import loop

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch(capsys, *long(coloured, whole))[0] == 0

    class StopAtTheThird(loop.StopRequest):
        asks = 0

        @property
        def asked(self) -> bool:
            self.asks += 1
            return self.asks == 3

        @asked.setter
        def asked(self, value: bool) -> None:
            pass

    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", StopAtTheThird)
        assert launch(capsys, *long(coloured, cut))[0] == 75
    assert [row["step"] for row in rows(cut) if "val/miou" in row] == [0]
    assert launch(capsys, *long(coloured, cut))[0] == 0
    assert_same_run(whole, cut)


def test_a_loss_that_is_not_finite_leaves_its_episodes(capsys, tmp_path, coloured):
    text = refused(capsys, *job(coloured, tmp_path / "run", "--optim.lr", "1e30", "--validate.split", "none"))
    assert "is not finite on rank 0: r00" in text
    (evidence,) = (tmp_path / "run" / "nonfinite").glob("*/batch_0.safetensors")
    assert load_file(evidence)["support"].shape == (4, 1, 3, 33, 33)


def test_what_does_not_fit_the_data_is_refused(capsys, tmp_path, coloured):
    def message_of(*words: str) -> str:
        return refused(capsys, *job(coloured, tmp_path / "run", *words))

    assert "episodes.fold is 4" in message_of("--episodes.fold", "4")
    assert "20 classes of PASCAL VOC" in message_of("--episodes.scheme", "pascal")
    assert "green has 4 of its 4 images" in message_of("--episodes.shots", "4")
    assert "green has 0 of its 4 images" in message_of("--episodes.novel_in_training", "drop"), "red is in all of them"
    assert "validate.classes is 3" in message_of("--validate.classes", "3")
    assert not (tmp_path / "run").exists(), "nothing is written before all fits"


def test_weights_of_something_else_are_refused(capsys, tmp_path, coloured):
    other = tmp_path / "other.safetensors"
    save_file({}, other, {"method": "msanet"})

    def message_of(*words: str) -> str:
        return refused(capsys, *job(coloured, tmp_path / "run", *words))

    assert "holds msanet, not qgnet" in message_of("--run.init_from", str(other))
    assert "other.safetensors" in message_of("--method.prior_map", "on", "--method.prior_weights", str(other))
    assert "pretrain" in message_of("--method.prior_map", "on")
    assert "absent.pth" in message_of("--method.backbone_weights", str(tmp_path / "absent.pth"))


@pytest.mark.usefixtures("no_pictures")
def test_a_run_knows_its_weights_by_what_they_hold(capsys, tmp_path, coloured):
    """The same file elsewhere is the same run; another file in its place is not."""
    from fss.methods.prior.config import PriorConfig
    from fss.methods.prior.method import PriorExtractor

    tensors, header = PriorExtractor(PriorConfig(backbone="resnet18", queue=8, local_queue=8)).export()
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    save_export(here, tensors, replace(header, images_seen=1))
    shutil.copy(here, there)
    words = job(coloured, tmp_path / "run", "--optim.steps", "1", "--validate.split", "none")
    words += ["--method.prior_map", "on"]
    assert launch(capsys, *words, "--method.prior_weights", str(here))[0] == 0
    code, out, err = launch(capsys, *words, "--method.prior_weights", str(there))
    assert code == 0 and "resumed at step 1" in out, err
    save_export(there, {name: t * 2 for name, t in tensors.items()}, replace(header, images_seen=1))
    assert "method.prior_weights is" in refused(capsys, *words, "--method.prior_weights", str(there))
