"""Checks of what a launcher and a machine ask of a job, before ranks wait for each other. Each raises RunError."""

import os
import platform
from typing import Any

import torch

from fss.errors import RunError

NVIDIA_DEVICE = "/dev/nvidiactl"
SUPPORTED = {"NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED"}  # accelerate's kinds that leave weights whole


def use_cpu(device: str, zero: bool) -> bool:
    """Decide if this rank computes on the CPU. device: 'auto', 'cpu' or 'cuda'; zero: whether DeepSpeed was requested.

    Raises RunError if the machine has not the devices that were requested.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RunError("run.device is cuda but torch sees no CUDA device: use --run.device cpu or auto")
    cpu = device == "cpu" or not available
    if zero and cpu and available:
        raise RunError("run.device is cpu but DeepSpeed takes the CUDA device here: leave --use_deepspeed out")
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not cpu and local_ranks > torch.cuda.device_count():
        raise RunError(
            f"{local_ranks} processes were started on a machine with {torch.cuda.device_count()} CUDA device(s): "
            "start one process for each device, or add --run.device cpu"
        )
    several_nodes = int(os.environ.get("WORLD_SIZE", 1)) > local_ranks
    if device == "auto" and cpu and several_nodes and os.path.exists(NVIDIA_DEVICE):
        raise RunError(  # the other nodes may see their devices, and would wait for this one in vain
            f"{platform.node()} has an NVIDIA driver but torch sees no CUDA device there: see nvidia-smi on it, or "
            "give --run.device cpu on all nodes"
        )
    return cpu


def check_world_size(world_size: int, requested: int | None) -> None:
    """Raise RunError unless there are as many ranks as the launcher started and as the user requested, if any."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if world_size != started:
        raise RunError(
            f"the launcher started {started} processes but this one sees {world_size} rank(s): "
            "start the job with 'accelerate launch --multi_gpu --num_processes N' (on CPU too) or with torchrun"
        )
    if requested is not None and world_size != requested:
        raise RunError(
            f"run.world_size promises {requested} ranks but {world_size} started: give accelerate "
            f"'--multi_gpu --num_processes {requested}' (on CPU too), or set --run.world_size {world_size}"
        )


def check_launcher(state: Any, device: torch.device, *, bf16: bool) -> None:
    """Raise RunError if the launcher asks for what methods and checkpoints cannot do. state: accelerate's."""
    if state.distributed_type.value not in SUPPORTED:
        raise RunError(
            f"the launcher asks for {state.distributed_type.value}: only plain data parallelism and DeepSpeed train "
            "here, as configured by the files in configs/accelerate and configs/deepspeed"
        )
    if (compiler := state.dynamo_plugin.backend.value) != "NO":
        raise RunError(
            f"the launcher asks to compile with dynamo's {compiler.lower()}: leave it out, and use the "
            "job's own option: run.compile of a training, method.compile of gfsam"
        )
    if bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RunError(
            f"run.precision is bf16, which {torch.cuda.get_device_name(device)} only emulates, slower than float32: "
            "use --run.precision float32"
        )


def check_deepspeed(plugin: Any) -> None:
    """Raise RunError if a configuration of DeepSpeed shards the weights or sets what `run` and `optim` decide.

    plugin: accelerate's, None without DeepSpeed.
    """
    if plugin is None:
        return
    if plugin.zero_stage not in (1, 2):
        raise RunError(
            f"DeepSpeed's ZeRO stage is {plugin.zero_stage}: give 1 or 2. Stage 3 shards the weights between "
            "steps, where momentum encoders and checkpoints read them whole"
        )
    config = plugin.deepspeed_config
    conflicts = [key for key in ("bf16", "fp16") if config.get(key, {}).get("enabled") is True]
    conflicts += [key for key in ("optimizer", "scheduler", "gradient_clipping") if key in config]
    if conflicts:
        raise RunError(
            f"the DeepSpeed configuration sets {conflicts[0]}, which is decided by run.precision and optim: leave it "
            "out, as configs/deepspeed/zero2.json does"
        )
