"""A training that the version before the renamed options began ends here as that version would have ended it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from fss.tracking.run_dir import RunDir
from launch import meta_train, pretrain_prior, train_base
from tests.support.places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COMMIT = "9a44d42"
FILES = Path(__file__).resolve().parent / "files"
CUT = 2  # the step from which today's code goes on
JOBS = {  # launcher, options beside those of the recorded configuration, steps, whether all bits are equal
    # InfoNCE is a softplus today, and the pyramid of PSPNet one product: equal up to rounding, which batch norm over a
    # few values amplifies after one more step.
    "prior": (pretrain_prior, "", 3, False),
    "base": (train_base, "", 3, False),
    "qgnet": (meta_train, "--method.prior_map off --method.prior_weights null", 4, True),
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
def test_a_run_continues_as_that_version_would_have(tmp_path, checkout, name):
    launcher, options, steps, exact = JOBS[name]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = f"--config {FILES / name / 'config.yaml'} --data.shards {FILES / 'shards'} --optim.steps {steps}".split()
    words += [*f"--checkpoint.every {CUT} {options}".split(), "--run.dir"]
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
    shutil.rmtree(cut / "checkpoints" / f"step_{steps:08d}")  # as if it had ended before
    for export in cut.glob("*.safetensors"):
        export.unlink()
    assert launcher.main([*words, str(cut)]) == 0
    for file in (f"checkpoints/step_{steps:08d}/state.safetensors", f"{name}.safetensors"):
        expected, found = load_file(whole / file), load_file(cut / file)
        assert expected.keys() == found.keys()
        assert not [key for key in expected if not same(expected[key], found[key], exact)]
    for expected, found in zip(*(RunDir(folder).rows() for folder in (whole, cut)), strict=True):
        for row in (expected, found):
            row.pop("speed", None)
        assert found == (expected if exact else pytest.approx(expected, rel=1e-3, abs=1e-5))


def same(expected: Tensor, found: Tensor, exact: bool) -> bool:
    """Whether all bits are equal; or, if not `exact`, each number up to 1e-5 of the largest."""
    if exact or not expected.is_floating_point():
        return expected.equal(found)
    return bool((expected - found).abs().max() <= 1e-5 * expected.abs().max())
