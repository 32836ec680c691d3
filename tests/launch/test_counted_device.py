"""The whole engine on a device that refuses tensors of the CPU: every command gives there what it gives on the CPU."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import launch.evaluate
import launch.mask_analysis
import launch.meta_train
import launch.pretrain_prior
import launch.recall
import launch.report
import launch.train_base
from fss.inference.segment_files import segment_files
from fss.methods.gfsam import GFSAMConfig
from fss.nn.exports import save_export
from fss.report import figure_style, training_page
from fss.train.validation import episode_validation, label_validation
from tests.support.counted_context import jobs_on_the_device
from tests.support.counted_device import NAME, counting
from tests.support.evaluating import recorded
from tests.support.launching import BASE, META, SMALL, job, rows
from tests.support.prior_runs import small_prior
from tests.support.scenes import GREEN, LEFT, RED, RIGHT, marked, saved, scene
from tests.support.tiny_gfsam import GRID, SIZE, STAND_INS

Main = Callable[[list[str]], int]
STEPS = "--optim.steps 2 --run.check_every 2 --data.workers 0 --run.report true".split()
EVALUATION = "--run.device cpu --data.workers 0 --eval.episodes 3 --eval.seeds [0] --eval.min_area 0".split()
GFSAM = f"--method gfsam --method.sam vit_t --method.size {SIZE} --method.dino_size {14 * GRID}".split()


@pytest.fixture(scope="module", autouse=True)
def small_pages() -> Iterator[None]:
    """Figures of few pixels and rows, and no curves, which are drawn from the numbers in a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch/job.py"])  # pages print it
        patch.setattr(figure_style, "DPI", 30)
        for validation in (episode_validation, label_validation):
            patch.setattr(validation, "EXAMPLES", 1)
        patch.setattr(training_page, "curves", lambda rows, path, **_: saved(path, np.zeros((2, 2, 3), np.uint8)))
        yield


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    """The export of a prior extractor."""
    torch.manual_seed(1)
    tensors, header = small_prior().export()
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_export(path, tensors, replace(header, epochs=3.0, images_seen=2400))
    return str(path)


@pytest.fixture(scope="module")
def qgnet(coloured, prior, tmp_path_factory) -> Path:
    """The run directory of a QGNet that was trained on the CPU."""
    folder = tmp_path_factory.mktemp("qgnet") / "cpu"
    assert launch.meta_train.main(job(META, coloured, folder, *STEPS, *with_prior(prior))) == 0
    return folder


def with_prior(prior: str) -> list[str]:
    """The options of a QGNet with both maps, trained by AdamW, whose state has a scalar beside each tensor."""
    maps = f"--method.prior_map on --method.heads true --method.prior_weights {prior}"
    optimizer = "--optim.optimizer adamw --optim.lr 1e-3 --optim.clip_norm 1"
    return f"{maps} {optimizer} --validate.every 2 --checkpoint.every 1".split()


def on_device(main: Main, words: list[str]) -> None:
    """Run a command whose ranks have the counted device."""
    with counting() as counted, jobs_on_the_device(), counted() as count:
        assert main(words) == 0
    assert count.kernels.total() > 100, "it did run there"


def assert_same_pictures(one: Path, other: Path) -> None:
    """The pictures in two folders have the same names, and nearly the same pixels."""
    names = [{path.relative_to(folder) for path in folder.rglob("*.png")} for folder in (one, other)]
    assert names[0] == names[1] != set()
    for name in names[0]:
        pictures = [np.asarray(Image.open(folder / name).convert("RGB"), np.float32) for folder in (one, other)]
        assert np.abs(pictures[0] - pictures[1]).mean() < 1, name


def assert_trained_alike(cpu: Path, device: Path, near: float) -> None:
    """Log, weights and pictures of two trainings."""
    logged = [rows(folder) for folder in (cpu, device)]
    assert len(logged[0]) == len(logged[1]) == 4  # two steps, two measurements
    for expected, found in zip(*logged, strict=True):
        for row in (expected, found):
            row.pop("speed", None)
        assert found == pytest.approx(expected, rel=near, abs=near)
    for file in cpu.glob("*.safetensors"):
        expected, found = load_file(file), load_file(device / file.name)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=near, atol=near, msg=name)
    assert_same_pictures(cpu, device)


def test_pretraining_with_its_probe_and_page(tmp_path, coloured):
    options = "--method.backbone resnet18 --data.batch 4 --data.backend device".split()
    words = lambda folder: job(SMALL, coloured, folder, *STEPS, *options)  # noqa: E731
    assert launch.pretrain_prior.main(words(tmp_path / "cpu")) == 0
    on_device(launch.pretrain_prior.main, words(tmp_path / "device"))
    assert_trained_alike(tmp_path / "cpu", tmp_path / "device", 1e-3)


def test_training_of_a_base_learner_with_its_validation_and_page(tmp_path, coloured):
    words = lambda folder: job(BASE, coloured, folder, *STEPS, "--validate.every", "2")  # noqa: E731
    assert launch.train_base.main(words(tmp_path / "cpu")) == 0
    on_device(launch.train_base.main, words(tmp_path / "device"))
    assert_trained_alike(tmp_path / "cpu", tmp_path / "device", 1e-3)


def test_meta_training_with_its_validation_and_page_and_a_resume(tmp_path, coloured, prior, qgnet, capsys):
    folder = tmp_path / "device"
    words = job(META, coloured, folder, *STEPS, *with_prior(prior))
    on_device(launch.meta_train.main, words)
    assert_trained_alike(qgnet, folder, 1e-3)
    last = folder / "checkpoints" / "step_00000002"
    expected = load_file(last / "state.safetensors")
    assert any(name.startswith("optimizer/step/") for name in expected)
    shutil.rmtree(last)
    capsys.readouterr()
    on_device(launch.meta_train.main, [*words, "--run.report", "false"])
    out = capsys.readouterr().out
    assert f" 1 x {NAME}, " in out and "resumed at step 1" in out
    found = load_file(last / "state.safetensors")
    assert expected.keys() == found.keys() and all(found[name].equal(t) for name, t in expected.items())


def test_evaluation_with_its_page_and_recall_and_comparison(tmp_path, coloured, qgnet):
    weights = ["--weights", str(qgnet / "best.safetensors"), "--data.shards", str(coloured), *EVALUATION]
    for name, start in (("cpu", lambda main, words: main(words)), ("device", on_device)):
        place = ["--run.dir", str(tmp_path / name), "--log.wandb", "off", "--episodes.shots", "2"]
        start(launch.evaluate.main, [*weights, *place])
        start(launch.recall.main, [*weights, "--out", str(tmp_path / name / "recall")])
    assert recorded(tmp_path / "device") == recorded(tmp_path / "cpu") != {}
    assert_same_pictures(tmp_path / "cpu", tmp_path / "device")
    results, recalls = (
        [json.loads((tmp_path / name / file).read_text()) for name in ("cpu", "device")]
        for file in ("results.json", "recall/recall.json")
    )
    for key in ("miou", "flops", "parameters", "encoder_passes"):
        assert results[1][key] == results[0][key]
    of_maps = [recall["recall"]["of_episodes"] for recall in recalls]
    assert of_maps[0].keys() == of_maps[1].keys()
    for name, values in of_maps[0].items():
        assert of_maps[1][name] == pytest.approx(values, abs=1e-2)
    assert launch.report.main([str(tmp_path / "device"), "--out", str(tmp_path / "page")]) == 0


def test_gfsam_with_its_page_and_the_analysis_of_its_masks(tmp_path, coloured):
    words = [*GFSAM, "--data.shards", str(coloured), *EVALUATION, *"--eval.protocol gfsam".split()]
    with mock.patch.multiple("fss.methods.gfsam", **STAND_INS):
        for name, start in (("cpu", lambda main, words: main(words)), ("device", on_device)):
            start(launch.evaluate.main, [*words, "--run.dir", str(tmp_path / name), "--log.wandb", "off"])
            start(launch.mask_analysis.main, [*words, "--out", str(tmp_path / name / "masks")])
    assert recorded(tmp_path / "device") == recorded(tmp_path / "cpu") != {}
    masks = [json.loads((tmp_path / name / "masks" / "masks.json").read_text())["rows"] for name in ("cpu", "device")]
    assert masks[0] == masks[1] != []
    assert_same_pictures(tmp_path / "cpu", tmp_path / "device")


@pytest.mark.parametrize("name", ["qgnet", "gfsam"])
def test_own_pictures(tmp_path, qgnet, name):
    shots = tmp_path / "shots"
    supports = [("red", LEFT, RED), ("green", RIGHT, GREEN), ("red", RIGHT, RED)]
    given = SimpleNamespace(
        support=[saved(shots / f"{i}.png", scene((place, colour))) for i, (_, place, colour) in enumerate(supports)],
        mask=[saved(shots / f"{i}_mask.png", marked(place)) for i, (_, place, _) in enumerate(supports)],
        name=[label for label, _, _ in supports],
        query=[saved(tmp_path / "queries" / "both.png", scene((LEFT, GREEN), (RIGHT, RED)))],
        size=None,
        method=GFSAMConfig(sam="vit_t", size=SIZE, dino_size=14 * GRID),
        weights=None,
    )
    if name == "qgnet":
        from fss.methods import load_method

        given.weights = str(qgnet / "best.safetensors")
        given.method = load_method(qgnet / "best.safetensors")[0].config
    with mock.patch.multiple("fss.methods.gfsam", **STAND_INS):
        segment_files(SimpleNamespace(**vars(given), device="cpu"), tmp_path / "cpu")
        with counting() as counted, counted():
            segment_files(SimpleNamespace(**vars(given), device=NAME), tmp_path / "device")
    maps = [np.asarray(Image.open(tmp_path / device / "both.png")) for device in ("cpu", "device")]
    assert (maps[0] == maps[1]).all()
    if name == "gfsam":
        assert set(np.unique(maps[1])) == {0, 1, 2}
    assert_same_pictures(tmp_path / "cpu", tmp_path / "device")
