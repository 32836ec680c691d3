"""The kernel for batch norm's affine map and ReLU: what it computes, by Triton's interpreter, and that it compiles."""

import os
import subprocess
import sys

import pytest
import torch

from fss.nn.normalize_relu import normalize_relu

INTERPRETED = """
import torch
from fss.nn.normalize_relu import launch, normalize_relu

torch.manual_seed(0)
for memory_format in (torch.contiguous_format, torch.channels_last):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 24, 13, 7).to(dtype).contiguous(memory_format=memory_format)
        x[1, 3, 5, 6] = float("nan")
        weight, bias, mean = torch.randn(3, 24)
        inverse = torch.rand(24)
        found, expected = (f(x, weight, bias, mean, inverse) for f in (launch, normalize_relu))
        assert found.stride() == x.stride()
        torch.testing.assert_close(found, expected, equal_nan=True)
"""
COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from fss.nn.triton_kernels import affine_relu

numbers = dict.fromkeys(("weight", "bias", "mean", "inverse"), "*fp32")
sizes = dict.fromkeys(("size", "channels", "pixels"), "i32")
for dtype in ("*fp32", "*bf16"):
    signature = {"x": dtype, **numbers, "out": dtype, **sizes, "BLOCK": "constexpr"}
    for capability in (75, 80, 90):
        made = compile(ASTSource(affine_relu, signature, {"BLOCK": 1024}), target=GPUTarget("cuda", capability, 32))
        assert made.asm["cubin"]
"""


@pytest.mark.parametrize(("program", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")])
def test_the_kernel(program, interpret, tmp_path):
    pytest.importorskip("triton", reason="this build of torch has no Triton")
    environment = os.environ | {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_the_affine_map_and_relu():
    x = torch.randn(2, 5, 4, 3)
    weight, bias, mean = torch.randn(3, 5)
    variance = torch.rand(5) + 0.1
    expected = torch.nn.functional.batch_norm(x, mean, variance, weight, bias, eps=0).relu()
    torch.testing.assert_close(normalize_relu(x, weight, bias, mean, variance.rsqrt()), expected)
