"""The machine and the versions that the figures are of."""

import os
import platform

import torch

from fss.provenance import code_version
from gpu_parts.part import NONE, Settings


def facts(settings: Settings) -> dict[str, str]:
    """Name -> value. Raises RuntimeError if the device is missing."""
    gpu = settings.device == "cuda"
    if gpu and not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device: give --device cpu --small to see what would run")
    cudnn = torch.backends.cudnn.version() if gpu else None
    return {
        "card": f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if gpu else NONE,
        "host": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "torch": torch.__version__,
        "CUDA": (torch.version.cuda or NONE) if gpu else NONE,
        "cuDNN": str(cudnn or NONE),
        "code": code_version(),
    }
