"""ZeRO-1 and ZeRO-2 train as DDP does, and leave checkpoints and weights from which any number of ranks resumes."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch import meta_train, pretrain_prior
from tests.support import launching
from tests.support.launching import META, META_LAUNCHER, Launched, rows, run
from tests.support.places import ROOT
from tests.support.ranks import on_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # on CPUs DeepSpeed compiles a library at its first use
    pytest.mark.skipif(
        not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'"
    ),
]
STEPS = 4
meta = partial(launching.job, [*META, "--checkpoint.every", "2", "--method.classifier_dropout", "0"])
# Maps large enough for a BatchNorm that does not magnify the last bit, and a rate at which it stays there.
PRETRAIN = [
    *launching.SMALL,
    *"--data.batch 8 --data.workers 0 --method.view_size 64 --method.patch_size 64 --optim.lr 0.001".split(),
    *f"--optim.steps {STEPS} --checkpoint.every 2".split(),
]


COMPILE = """
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
builder is None or builder.load()
"""


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Compile DeepSpeed's library for CPUs here, where it may take minutes, and not within the limits of a job.

    It is compiled again whenever the path of ninja changes, so that of the environment comes first.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        subprocess.run([sys.executable, "-c", COMPILE], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        yield


def state(folder: Path, step: int = STEPS) -> dict:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "state.safetensors")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder) if "loss" in row]


def norms(folder: Path) -> list[float]:
    return [row["grad_norm"] for row in rows(folder) if "grad_norm" in row]


def on_forked_ranks(world_size: int, main: Callable[[list[str]], int], words: list[str]) -> str:
    """The output of rank 0 of a job that must succeed, under DDP and without a launcher: its ranks import nothing."""
    return on_ranks(world_size, output_of, main, [*words, "--run.world_size", str(world_size)], timeout=400)[0]


def output_of(main: Callable[[list[str]], int], words: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(words) == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def ddp_with(tmp_path_factory, coloured) -> Callable[..., Path]:
    """Options -> a meta-training of two ranks under DDP."""

    @cache
    def trained(*words: str) -> Path:
        folder = tmp_path_factory.mktemp("ddp") / "run"
        on_forked_ranks(2, meta_train.main, meta(coloured, folder, *words))
        return folder

    return trained


@pytest.fixture(scope="module")
def ddp(ddp_with) -> Path:
    return ddp_with()


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_meta_training_follows_ddp_and_resumes_on_other_ranks(tmp_path, coloured, ddp, stage):
    folder = tmp_path / "run"
    run(2, *meta(coloured, folder), launcher=META_LAUNCHER, config=stage)
    assert losses(folder) == pytest.approx(losses(ddp), rel=1e-4)
    assert norms(folder) == pytest.approx(norms(ddp), rel=1e-3)
    whole, expected = state(folder), state(ddp)
    assert {name: t.shape for name, t in whole.items()} == {name: t.shape for name, t in expected.items()}
    assert load_file(folder / "qgnet.safetensors").keys() == load_file(ddp / "qgnet.safetensors").keys()

    tensors = [name for name in whole if not name.startswith("rng/")]
    words = meta(coloured, folder)
    for resume in (
        lambda: run(2, *words, launcher=META_LAUNCHER, config=stage),
        lambda: on_forked_ranks(2, meta_train.main, words),
        lambda: on_forked_ranks(1, meta_train.main, words),
    ):
        shutil.rmtree(folder / "checkpoints" / f"step_{STEPS:08d}")
        assert "resumed at step 2" in resume()
        resumed = state(folder)
        assert all(resumed[name].allclose(whole[name], rtol=1e-3, atol=1e-5) for name in tensors)


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
@pytest.mark.parametrize(
    ("words", "loss", "norm"),
    [
        pytest.param(("--optim.accumulate", "2"), 1e-4, 1e-3, id="accumulation"),
        pytest.param(("--run.precision", "bf16"), 1e-2, 5e-2, id="bf16"),
        pytest.param(("--optim.accumulate", "2", "--run.precision", "bf16"), 1e-2, 5e-2, id="both"),
    ],
)
def test_accumulation_and_bf16_follow_ddp(tmp_path, coloured, ddp_with, ddp, stage, words, loss, norm):
    folder, same = tmp_path / "run", ddp_with(*words)
    run(2, *meta(coloured, folder, *words), launcher=META_LAUNCHER, config=stage)
    assert losses(folder) == pytest.approx(losses(same), rel=loss)
    assert norms(folder) == pytest.approx(norms(same), rel=norm)
    assert losses(folder) != losses(ddp), "the options changed nothing"
    assert {name: tensor.dtype for name, tensor in state(folder).items()} == {
        name: tensor.dtype for name, tensor in state(same).items()
    }


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_adamw_with_clipping_follows_ddp_and_resumes(tmp_path, coloured, ddp_with, stage):
    words = "--optim.optimizer adamw --optim.lr 0.001 --optim.clip_norm 0.1 --optim.accumulate 2".split()
    folder, same = tmp_path / "run", ddp_with(*words)
    run(2, *meta(coloured, folder, *words), launcher=META_LAUNCHER, config=stage)
    assert losses(folder) == pytest.approx(losses(same), rel=1e-2)
    assert norms(folder) == pytest.approx(norms(same), rel=2e-2)
    assert min(norms(folder)) > 0.1, "the norm before clipping is logged"
    whole, expected = state(folder), state(same)
    assert {name: t.shape for name, t in whole.items()} == {name: t.shape for name, t in expected.items()}
    assert {t.item() for name, t in whole.items() if name.startswith("optimizer/step/")} == {STEPS}
    gradients = [name for name in whole if name.startswith("optimizer/exp_avg/")]
    assert all(whole[name].allclose(expected[name], rtol=0.1, atol=1e-5) for name in gradients)
    shutil.rmtree(folder / "checkpoints" / f"step_{STEPS:08d}")
    assert "resumed at step 2" in run(2, *meta(coloured, folder, *words), launcher=META_LAUNCHER, config=stage)
    found = state(folder)
    assert found.keys() == whole.keys()
    assert all(found[name].allclose(whole[name], rtol=1e-3, atol=1e-5) for name in whole if not name.startswith("rng/"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, packed) -> Path:
    """A pretraining of two ranks under DDP."""
    folder = tmp_path_factory.mktemp("ddp") / "run"
    on_forked_ranks(2, pretrain_prior.main, launching.job(PRETRAIN, packed, folder))
    return folder


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_pretraining_follows_ddp(tmp_path, packed, pretrained, stage):
    one, other = pretrained, tmp_path / stage
    run(2, *launching.job(PRETRAIN, packed, other), config=stage)
    assert losses(other) == pytest.approx(losses(one), rel=1e-2)
    assert {n: t.shape for n, t in state(other).items()} == {n: t.shape for n, t in state(one).items()}
    assert load_file(other / "prior.safetensors").keys() == load_file(one / "prior.safetensors").keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, "momentum encoders and checkpoints read them whole"),
        ({"bf16": {"enabled": True}}, "decided by run.precision"),
    ],
)
def test_what_deepspeed_may_not_do_is_refused(tmp_path, packed, changes, words):
    options = json.loads((ROOT / "configs/deepspeed/zero2.json").read_text())
    (tmp_path / "options.json").write_text(json.dumps(options | changes))
    plain = (ROOT / "configs/accelerate/zero2.yaml").read_text()
    (tmp_path / "odd.yaml").write_text(plain.replace("configs/deepspeed/zero2.json", str(tmp_path / "options.json")))
    code, output = Launched(2, *launching.job(PRETRAIN, packed, tmp_path / "run"), config=str(tmp_path / "odd")).wait()
    assert code != 0
    assert words in output
    assert not (tmp_path / "run").exists()
