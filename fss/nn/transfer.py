"""Copies between host and device that wait as rarely as they can, and tables that are copied once."""

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, cast

import torch
from torch import Tensor

P = ParamSpec("P")

STAGED = 1 << 16  # bytes: CUDA copies no more than this from pageable memory without waiting for earlier kernels


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor [...] to `device`; the host does not wait. A tensor that is there already is returned as it is."""
    if device.type == "cuda" and x.device.type == "cpu" and x.nbytes > STAGED:
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copy tensors [...] of one dtype and device to the CPU by one copy, for which the host waits; shapes are kept.

    Tensors on the CPU are returned as they are.
    """
    if tensors[0].device.type == "cpu":
        return tensors
    flat = torch.cat([x.flatten() for x in tensors]).cpu()
    parts = flat.split([x.numel() for x in tensors])
    return tuple(part.view(x.shape) for part, x in zip(parts, tensors, strict=True))


def start_to_host(x: Tensor) -> Callable[[], Tensor]:
    """Start a copy of a tensor [...] to the CPU; the function returned waits until it has arrived, and returns it.

    On CUDA that is when all kernels launched before the call have ended; the host may launch others in the meantime.
    """
    if x.device.type == "cpu":
        return lambda: x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.device.type == "cuda")
    host.copy_(x, non_blocking=True)
    wait = launched_so_far(x.device)

    def finish() -> Tensor:
        wait()
        return host

    return finish


def launched_so_far(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until `device` has carried out what was launched before this call.

    Only CUDA has to be waited for. What is launched later is not.
    """
    if device.type != "cuda":
        return lambda: None
    event = torch.Event(device)
    event.record()
    return event.synchronize


def device_table(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Keep the tables [...] that a function makes, by its arguments, one of which is their device.

    A table that is first needed in an evaluation serves training, too: it is made outside of inference mode.
    """
    return cast(Callable[P, Tensor], lru_cache(maxsize=256)(torch.inference_mode(False)(make)))
