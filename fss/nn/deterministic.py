"""Operations whose gradient on CUDA adds in an order that differs between runs, in forms that always add in one order.

Each function computes what torch's own does. While `torch.use_deterministic_algorithms` is on, under which torch's own
raises RuntimeError, it takes products of matrices instead; they equal torch's results up to rounding, to that of TF32
if it is on. The matrices depend on sizes alone and are kept on their device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fss.nn.transfer import device_table, to_device


def bilinear(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize [B, C, H, W] -> [B, C, h, w], bilinear with aligned corners."""
    if _needs_fixed_order(x):
        return _two_products(x, interpolation, size)
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def adaptive_average(x: Tensor, size: Sequence[int]) -> Tensor:
    """The means of [B, C, H, W] over h x w cells that cover it, which may overlap: [B, C, h, w]."""
    if _needs_fixed_order(x):
        return _two_products(x, _averaging, size)
    return F.adaptive_avg_pool2d(x, (size[0], size[1]))


def summed_cross_entropy(logits: Tensor, target: Tensor, ignore: int) -> Tensor:
    """The sum of the cross-entropy, nats, over the pixels whose label is not `ignore`; a scalar.

    logits: [B, C, H, W]. target: int64 [B, H, W] of 0 to C - 1 and `ignore`, which is no class.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.cross_entropy(logits, target, ignore_index=ignore, reduction="sum")
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    return -logits.log_softmax(1).where(target[:, None] == classes, 0).sum()


def _needs_fixed_order(x: Tensor) -> bool:
    """Return whether a gradient with respect to x will be computed and must not depend on the order of threads."""
    return torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled() and x.requires_grad


def _two_products(x: Tensor, matrix: Callable[[int, int, torch.device], Tensor], size: Sequence[int]) -> Tensor:
    """Apply `matrix` to the columns and the rows of [B, C, H, W], in float32: [B, C, *size] of the type of x."""
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = (matrix(old, new, x.device) for old, new in zip(x.shape[2:], size, strict=True))
        return (rows @ (x.float() @ columns.mT)).to(x.dtype)


@device_table
def interpolation(old: int, new: int, device: torch.device) -> Tensor:
    """The weights of `old` positions at each of `new`, float32 [new, old]; corners are aligned."""
    line = F.interpolate(torch.eye(old)[None], new, mode="linear", align_corners=True)[0]  # [old, new]
    return to_device(line.mT.contiguous(), device)


@device_table
def _averaging(old: int, new: int, device: torch.device) -> Tensor:
    """The weights of `old` positions in the mean of each of `new` cells, float32 [new, old]."""
    cell, position = torch.arange(new, device=device)[:, None], torch.arange(old, device=device)
    start, end = cell * old // new, ((cell + 1) * old + new - 1) // new
    return ((position >= start) & (position < end)).float() / (end - start)
