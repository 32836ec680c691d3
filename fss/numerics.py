"""The settings of torch that decide how a GPU rounds: TF32, and which algorithms may run.

TF32 is the format in which the tensor cores of NVIDIA GPUs since Ampere multiply float32 numbers: factors are rounded
to 10 bits of mantissa instead of 23, sums stay float32. torch has one switch for matrix products, off by default, and
one for the convolutions of cuDNN, on by default. On other devices neither has an effect.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REPEATABLE_WORKSPACES = (":4096:8", ":16:8")
"""Values of WORKSPACE with which cuBLAS sums in the same order in every run."""


@contextmanager
def numerics(precision: str = "float32", *, deterministic: bool = False) -> Iterator[None]:
    """Context in which torch computes as `precision` and `deterministic` say; what was set before is restored.

    float32: neither matrix products nor convolutions use TF32. tf32: both do. bf16: as float32, because what autocast
    (not set here) leaves in float32 needs the digits. deterministic: torch takes only algorithms that give the same
    bits in every run, and raises RuntimeError for an operation that has none. To be entered before the process first
    uses its GPU, as cuBLAS then reads its environment variable.
    """
    # The older switches: those of torch 2.9 and later refuse to be read by code that knows only these.
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    of_matmul, of_cudnn = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        with _deterministic_algorithms() if deterministic else nullcontext():
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = of_matmul, of_cudnn


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it times algorithms and takes another one in another run
    if workspace not in REPEATABLE_WORKSPACES:
        os.environ[WORKSPACE] = REPEATABLE_WORKSPACES[0]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
        else:
            os.environ[WORKSPACE] = workspace


def has_tf32(device: torch.device) -> bool:
    """Return whether the device multiplies in TF32 where it may: an NVIDIA GPU since Ampere."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def rounding(device: torch.device) -> dict[str, Any]:
    """The settings in force for `device`: {'tf32_matmul', 'tf32_cudnn', 'deterministic'} -> bool."""
    tf32 = has_tf32(device)
    return {
        "tf32_matmul": tf32 and torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": tf32 and torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def describe(precision: str, device: torch.device) -> str:
    """`precision` in words for the opening lines of a job, such as 'tf32 (float32 on cpu)'."""
    return f"tf32 (float32 on {device.type})" if precision == "tf32" and not has_tf32(device) else precision
