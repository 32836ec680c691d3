"""The origin of a result: the version of the code, the environment, digests of inputs."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fss.numerics import rounding

PACKAGES = ("torch", "torchvision", "accelerate", "webdataset", "numpy", "opencv-python-headless", "scikit-image")


def digest(value: object) -> str:
    """A short stable digest of a value that JSON can represent: 16 hex digits of its SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_version() -> str:
    """The git commit of the code that runs, '+' for uncommitted changes; the package version outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return version("fss")


def count_conditions(device: torch.device) -> dict[str, Any]:
    """The conditions besides options that decide the last digits of logits, and so the counts of an evaluation.

    The name of the device, of a CPU its architecture alone, so that the nodes of a cluster may share an evaluation; the
    version of torch with its build; whether TF32 is on.
    """
    settings = {name: value for name, value in rounding(device).items() if name.startswith("tf32")}
    return {"device": device_name(device), "torch": str(torch.__version__), **settings}


def device_name(device: torch.device) -> str:
    """The model of a GPU, the architecture of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """The conditions of a run: versions, machine, command, and how torch rounds now.

    device: where the method runs. precision: `run.precision`.
    """
    cuda = device.type == "cuda"
    return {
        "command": shlex.join(sys.argv),
        "code": code_version(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "precision": precision,
        **rounding(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
