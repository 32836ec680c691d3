"""What a launcher and a machine may ask of a job: what cannot be is refused in a sentence, before ranks wait for it."""

import os
import platform
from typing import Any

import torch

from fss.errors import RunError

DRIVER = "/dev/nvidiactl"
PLAIN = {"NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED"}  # kinds of accelerate that leave weights whole


def takes_cpu(device: str, zero: bool) -> bool:
    """Whether this rank computes on the CPU. device: 'auto', 'cpu' or 'cuda'; zero: whether DeepSpeed was asked for."""
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise RunError("run.device is cuda but torch sees no CUDA device: use --run.device cpu or auto")
    cpu = device == "cpu" or not found
    if zero and cpu and found:
        raise RunError("run.device is cpu but DeepSpeed takes the CUDA device here: leave --use_deepspeed out")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not cpu and here > torch.cuda.device_count():
        raise RunError(
            f"{here} processes were started on a machine with {torch.cuda.device_count()} CUDA device(s): "
            "start one a device, or add --run.device cpu"
        )
    if device == "auto" and cpu and int(os.environ.get("WORLD_SIZE", 1)) > here and os.path.exists(DRIVER):
        raise RunError(  # the other nodes may see theirs, and would wait for this one in vain
            f"{platform.node()} has an NVIDIA driver but torch sees no CUDA device there: see nvidia-smi on it, or "
            "give --run.device cpu on all nodes"
        )
    return cpu


def check_size(size: int, promised: int | None) -> None:
    """As many ranks as the launcher started, and as the user was promised."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if size != started:
        raise RunError(
            f"the launcher started {started} processes but this one sees a world of {size}: "
            "start the job with 'accelerate launch --multi_gpu --num_processes N' (on CPU too) or with torchrun"
        )
    if promised is not None and size != promised:
        raise RunError(
            f"run.world_size promises {promised} ranks but {size} started: give accelerate "
            f"'--multi_gpu --num_processes {promised}' (on CPU too), or set --run.world_size {size}"
        )


def check_asked(state: Any, device: torch.device, *, bf16: bool) -> None:
    """Nothing that reaches into what methods and checkpoints read whole. state: accelerate's."""
    if state.distributed_type.value not in PLAIN:
        raise RunError(
            f"the launcher asks for {state.distributed_type.value}: only plain data parallelism and DeepSpeed train "
            "here, as the files in configs/accelerate and configs/deepspeed have them"
        )
    if (compiler := state.dynamo_plugin.backend.value) != "NO":
        raise RunError(
            f"the launcher asks to compile with dynamo's {compiler.lower()}: leave it out; what can be compiled has "
            "options of its own"
        )
    if bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RunError(
            f"run.precision is bf16, which {torch.cuda.get_device_name(device)} only emulates, slower than float32: "
            "use --run.precision float32"
        )


def check_zero(plugin: Any) -> None:
    """A configuration of DeepSpeed (accelerate's plugin, or None) that leaves weights whole and decisions to us."""
    if plugin is None:
        return
    if plugin.zero_stage not in (1, 2):
        raise RunError(
            f"DeepSpeed's ZeRO stage is {plugin.zero_stage}: give 1 or 2. Stage 3 takes the weights apart between "
            "steps, where momentum encoders and checkpoints read them whole"
        )
    config = plugin.deepspeed_config
    meddles = [key for key in ("bf16", "fp16") if config.get(key, {}).get("enabled") is True]
    meddles += [key for key in ("optimizer", "scheduler", "gradient_clipping") if key in config]
    if meddles:
        raise RunError(
            f"the DeepSpeed configuration sets {meddles[0]}, which is decided by run.precision and optim: leave it "
            "out, as configs/deepspeed/zero2.json does"
        )
