"""The settings of torch for each precision, and that a job leaves none behind."""

import os

import pytest
import torch

from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RunConfig, RuntimeConfig
from fss.errors import RunError
from fss.inference.segmenter import Segmenter
from fss.numerics import WORKSPACE, describe, numerics, rounding
from fss.provenance import environment
from tests.support.episode_toy import Colour
from tests.support.scenes import LEFT, RED, marked, scene

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def flags() -> tuple:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled()
    return matmul.allow_tf32, cudnn.allow_tf32, deterministic, cudnn.benchmark, os.environ.get(WORKSPACE)


@pytest.fixture
def ampere(monkeypatch):
    """An NVIDIA GPU of compute capability 8.0, as far as torch can be asked without one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bf16", False)])
def test_a_job_sets_both_switches_and_restores_them(precision, tf32, ampere):
    before = flags()
    with DistributedContext.from_config(RuntimeConfig(device="cpu", precision=precision)):
        assert flags() == (tf32, tf32, *before[2:])
        assert rounding(GPU) == {"tf32_matmul": tf32, "tf32_cudnn": tf32, "deterministic": False}
        assert rounding(CPU) == {"tf32_matmul": False, "tf32_cudnn": False, "deterministic": False}
    assert flags() == before


def test_a_deterministic_job(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    with DistributedContext.from_config(RuntimeConfig(device="cpu", deterministic=True)):
        assert flags() == (False, False, True, False, ":4096:8") and rounding(CPU)["deterministic"]
    assert flags() == before
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with numerics(deterministic=True):
        assert os.environ[WORKSPACE] == ":16:8", "the other value with which cuBLAS repeats itself is the user's choice"
    assert os.environ[WORKSPACE] == ":16:8"


def test_a_job_that_is_refused_leaves_no_setting_behind():
    before = flags()
    runtime = RuntimeConfig(device="cpu", precision="tf32", deterministic=True, world_size=2)
    with pytest.raises(RunError, match="promises 2 ranks"):
        DistributedContext.from_config(runtime)
    assert flags() == before


def test_the_settings_are_restored_after_an_error():
    before = flags()
    with pytest.raises(ZeroDivisionError), numerics("tf32", deterministic=True):
        raise ZeroDivisionError
    assert flags() == before


def test_defaults():
    """A training may round; counts of an evaluation have all digits."""
    assert RunConfig().precision == "tf32" and RuntimeConfig().precision == "float32"
    assert not RunConfig().deterministic


def test_tf32_changes_no_bit_on_a_cpu():
    x, weight = torch.randn(2, 3, 17, 17), torch.randn(8, 3, 3, 3)
    results = []
    for precision in ("float32", "tf32"):
        with numerics(precision):
            results.append((x.flatten(1) @ x.flatten(1).mT, torch.conv2d(x, weight)))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_segmenter_computes_with_all_digits(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []
    encode = Colour.encode
    monkeypatch.setattr(Colour, "encode", lambda self, image: seen.append(flags()[:2]) or encode(self, image))
    Segmenter(Colour(), device="cpu").predict(scene((LEFT, RED)), [(scene((LEFT, RED)), marked(LEFT))])
    assert set(seen) == {(False, False)}
    assert torch.backends.cudnn.allow_tf32


def test_what_is_recorded(ampere, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92000)
    with numerics("tf32"):
        on_gpu, on_cpu = environment(GPU, "tf32"), environment(CPU, "tf32")
    expected = {"device": "NVIDIA A100-SXM4-80GB", "cuda": "13.2", "cudnn": 92000, "precision": "tf32"}
    assert expected.items() <= on_gpu.items()
    assert on_gpu["tf32_matmul"] and on_gpu["tf32_cudnn"] and not on_gpu["deterministic"]
    assert (on_cpu["device"], on_cpu["cuda"], on_cpu["cudnn"]) == ("cpu", None, None)
    assert on_cpu["precision"] == "tf32" and not on_cpu["tf32_matmul"] and not on_cpu["tf32_cudnn"]


def test_in_words(ampere, monkeypatch):
    assert describe("tf32", CPU) == "tf32 (float32 on cpu)" and describe("tf32", GPU) == "tf32"
    assert describe("bf16", CPU) == "bf16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert describe("tf32", GPU) == "tf32 (float32 on cuda)", "Volta has no TF32"
