"""`launch/pretrain_prior.py`: recipes, what it writes, what it refuses, and that nothing is lost when it does."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open

from fss.config import CONFIGS
from fss.data import worker_count
from launch.pretrain_prior import main
from shards.format import MANIFEST, Manifest
from tests.support import launching
from tests.support.launching import PLACE, SMALL, Launched, called, refusal, rows, run
from tests.support.wandb_file import config, history

RECIPES = sorted((CONFIGS / "pretrain").glob("*.yaml"))

launch, refused = partial(called, main), partial(refusal, main)
job = partial(launching.job, [*SMALL, "--data.workers", "0", "--optim.steps", "4"])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_takes_a_step(capsys, tmp_path, packed, recipe):
    code, _, err = launch(
        capsys,
        "--config",
        str(recipe),
        *launching.job(PLACE, packed, tmp_path / "run"),
        *"--optim.steps 1 --data.batch 4 --data.workers 0 --method.backbone resnet18".split(),
        *"--method.view_size 32 --method.patch_size 32 --method.queue 40 --method.local_queue 40".split(),
        *"--probe.limit 8".split(),
    )
    assert code == 0, err
    assert (tmp_path / "run" / "prior.safetensors").exists()


def test_what_a_run_leaves_behind(capsys, tmp_path, packed, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no account, as on a new machine
    folder = tmp_path / "run"
    words = job(packed, tmp_path / "run", "--optim.steps", "3")
    code, out, err = launch(capsys, *words, "--log.wandb", "auto", "--run.report", "true")
    assert code == 0, err
    logged = rows(folder)
    assert [row["step"] for row in logged] == [0, 1, 2, 3, 3]
    assert {"loss", "loss/global", "loss/local", "lr", "grad_norm", "epoch", "speed"} <= logged[1].keys()

    (offline,) = folder.glob("wandb/offline-run-*/*.wandb")
    shown = history(offline)
    assert [row["loss"] for row in shown if "loss" in row] == [row["loss"] for row in logged if "loss" in row]
    assert any("speed/images_per_s" in row for row in shown) and any("knn/top1" in row for row in shown)
    assert config(offline)["method"]["queue"] == 40

    with safe_open(folder / "prior.safetensors", framework="pt") as weights:
        facts = weights.metadata()
        assert {"conv1.weight", "layer4.1.bn2.running_mean"} <= set(weights.keys())
    assert (facts["images_seen"], facts["data"]) == ("18", "synthetic")
    assert json.loads(facts["knn"]) == logged[-1]["knn/top1"]
    assert (folder / "report" / "index.html").exists()

    again, out, _ = launch(capsys, *words, "--log.wandb", "off")
    assert again == 0 and "resumed at step 3" in out
    assert "method.queue is 40 there and 41 here" in refused(capsys, *words, "--method.queue", "41")
    assert "not a run directory" in refused(capsys, *words, "--run.dir", str(packed))

    started = tmp_path / "warm"
    code, out, err = launch(
        capsys,
        *words,
        "--run.dir",
        str(started),
        "--run.init_from",
        str(folder / "prior.safetensors"),
        "--log.wandb",
        "off",
    )
    assert code == 0 and "start from" in out, err


def test_two_ranks_end_where_one_would_have_them_end(tmp_path, packed):
    """The launcher on two processes: world promised, one log, ranks equal (the run checks it every other step)."""
    words = job(packed, tmp_path / "run", "--optim.steps", "2")
    output = run(2, *words)
    assert "on 2 x cpu" in output
    assert output.count("step 2/2  epoch") == 1


def test_a_broken_promise_of_ranks_is_refused_by_the_launcher(tmp_path, packed):
    words = launching.job(SMALL, packed, tmp_path / "run", "--run.world_size", "3")
    code, output = Launched(1, *words).wait()
    assert code != 0
    assert "error: run.world_size promises 3 ranks but 1 started" in output
    assert not (tmp_path / "run").exists()


@pytest.fixture
def broken(tmp_path, packed) -> Path:
    """A copy of the packed set, to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "set"))


def spoil(folder: Path, member: str, data: bytes) -> str:
    """Overwrite the start of a member of the first sample in place; returns the sample's key."""
    row = Manifest.load(folder).samples[0]
    shard = folder / Manifest.load(folder).shards[row.shard].name
    content = bytearray(shard.read_bytes())
    at = content.index(f"{row.key}.{member}".encode(), row.offset)
    content[at + 512 : at + 512 + len(data)] = data
    shard.write_bytes(content)
    return row.key


def test_shards_that_are_not_there(capsys, tmp_path):
    assert "launch/pack.py" in refused(capsys, *job(tmp_path / "nothing", tmp_path / "run"))


def test_a_truncated_tar(capsys, tmp_path, broken):
    shard = sorted(broken.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:5000])
    text = refused(capsys, *job(broken, tmp_path / "run"))
    assert shard.name in text and "5000 bytes" in text


@pytest.mark.usefixtures("no_pictures")
def test_a_broken_jpeg_is_replaced_and_named(capsys, tmp_path, broken):
    key = spoil(broken, "jpg", b"not a JPEG any more" * 20)
    code, out, err = launch(capsys, *job(broken, tmp_path / "run"))
    assert code == 0, err
    assert f"replaced an unreadable sample, {key}" in out


@pytest.mark.usefixtures("no_pictures")
def test_a_label_map_of_the_wrong_size_is_replaced_and_named(capsys, tmp_path, broken):
    import cv2
    import numpy as np

    small = cv2.imencode(".png", np.zeros((3, 3), np.uint8))[1].tobytes()
    key = spoil(broken, "slic.png", small)
    code, out, err = launch(capsys, *job(broken, tmp_path / "run"))
    assert code == 0, err
    assert f"replaced an unreadable sample, {key}" in out and "3" in out


def test_more_bad_samples_than_allowed_stop_the_run(capsys, tmp_path, broken):
    spoil(broken, "jpg", b"not a JPEG any more" * 20)
    assert "shards.check" in refused(capsys, *job(broken, tmp_path / "run", "--data.bad_fraction", "0"))


def test_images_without_superpixels(capsys, tmp_path, broken):
    manifest = json.loads((broken / MANIFEST).read_text())
    manifest["superpixels"].pop("slic")
    (broken / MANIFEST).write_text(json.dumps(manifest))
    text = refused(capsys, *job(broken, tmp_path / "run"))
    assert "--superpixels slic" in text and "method.local" in text


@pytest.mark.usefixtures("no_pictures")
def test_a_checkpoint_cut_in_half(capsys, tmp_path, packed):
    words = job(packed, tmp_path / "run", "--checkpoint.every", "1")
    assert launch(capsys, *words)[0] == 0
    newest = tmp_path / "run" / "checkpoints" / "step_00000004"
    data = (newest / "state.safetensors").read_bytes()
    (newest / "state.safetensors").write_bytes(data[: len(data) // 2])
    code, out, _ = launch(capsys, *words)
    assert code == 0
    assert "step_00000004 is damaged" in out and "resumed at step 3" in out


@pytest.mark.usefixtures("no_pictures")
def test_a_batch_that_cannot_be_dealt(capsys, tmp_path, packed):
    text = refused(capsys, *job(packed, tmp_path / "run", "--optim.accumulate", "4"))
    assert "data.batch 6" in text and "give 4 or 8" in text
    corrected = job(packed, tmp_path / "run", "--optim.accumulate", "3")  # in the same place
    code, _, err = launch(capsys, *corrected)
    assert code == 0, err


def test_a_disk_that_fills_while_saving(capsys, tmp_path, packed, small_disk):
    run_dir = small_disk("200m") / "run"
    words = job(packed, tmp_path / "run", "--run.dir", str(run_dir), "--checkpoint.every", "2")
    text = refused(capsys, *words)  # one checkpoint fits, the second does not
    assert "cannot save step 4" in text and "checkpoint 2 is whole" in text
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000002"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_compiled_encoders_take_the_same_steps(capsys, tmp_path, packed):
    losses = []
    for compiled in ("false", "true"):
        words = job(packed, tmp_path / compiled, "--run.compile", compiled, "--optim.steps", "2")
        code, _, err = launch(capsys, *words)
        assert code == 0, err
        losses.append([row["loss"] for row in rows(tmp_path / compiled) if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("local", ["patch", "region"])
def test_views_made_on_the_device_resume_bit_for_bit_with_other_workers(capsys, tmp_path, packed, monkeypatch, local):
    """Begun without workers, as a recorded configuration may say; continued with as many as the cores allow."""
    folder = tmp_path / "run"
    steps = ["--optim.steps", str(launching.STEPS), "--checkpoint.every", "6", "--run.threads", "1"]
    words = job(packed, folder, *steps, "--data.backend", "device", "--method.local", local)
    assert launch(capsys, *words)[0] == 0
    expected = launching.final_state(folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000008")
    monkeypatch.setattr(worker_count, "cores", lambda: 3)
    code, out, err = launch(capsys, *words, "--data.workers", "null")
    assert code == 0, err
    assert "resumed at step 6" in out and "2 data workers each" in out
    found = launching.final_state(folder)
    assert found[0].keys() == expected[0].keys() and all(found[0][name].equal(t) for name, t in expected[0].items())
    assert found[1] == expected[1]
