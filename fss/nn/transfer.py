"""Copies between host and device that wait as rarely as they can."""

import torch
from torch import Tensor

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
