"""A training that the version before the renamed options began ends here as that version would have ended it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fss.tracking.run_dir import RunDir
from launch import meta_train, pretrain_prior, train_base
from tests.support.places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMIT = "9a44d42"
FILES = Path(__file__).resolve().parent / "files"
STEPS = 4
JOBS = {  # launcher, and options beside those of the recorded configuration
    "prior": (pretrain_prior, ""),
    "base": (train_base, ""),
    "qgnet": (meta_train, "--method.prior_map off --method.prior_weights null"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The source of that version; skips the test if the history does not reach back to it."""
    if shutil.which("git") is None:
        pytest.skip("there is no command git, which unpacks the earlier version")
    archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"commit {COMMIT} is not in the history of this checkout: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("earlier")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@pytest.mark.parametrize("name", JOBS)
def test_a_run_continues_bit_for_bit(tmp_path, checkout, name):
    launcher, options = JOBS[name]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = f"--config {FILES / name / 'config.yaml'} --data.shards {FILES / 'shards'} --optim.steps {STEPS}".split()
    words += [*f"--checkpoint.every 2 {options}".split(), "--run.dir"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "ACCELERATE"))}
    done = subprocess.run(
        [sys.executable, f"launch/{Path(launcher.__file__).name}", *words, str(whole)],
        cwd=checkout,
        env=environment | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / f"step_{STEPS:08d}")  # as if it had ended after step 2
    for export in cut.glob("*.safetensors"):
        export.unlink()
    assert launcher.main([*words, str(cut)]) == 0
    assert_same_tensors(whole, cut, f"checkpoints/step_{STEPS:08d}/state.safetensors")
    assert_same_tensors(whole, cut, f"{name}.safetensors")
    rows = [[row | {"speed": None} for row in RunDir(folder).rows()] for folder in (whole, cut)]
    assert rows[0] == rows[1]


def assert_same_tensors(one: Path, other: Path, name: str) -> None:
    expected, found = load_file(one / name), load_file(other / name)
    assert expected.keys() == found.keys()
    assert not [key for key in expected if not expected[key].equal(found[key])]
