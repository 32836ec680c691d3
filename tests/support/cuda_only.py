"""Operations that torch has for CUDA alone, written from their definitions: those of batch norm over several ranks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _channels(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def _column(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(1, -1, *[1] * (like.dim() - 2))


def _batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x.float(), _channels(x), correction=0)
    return mean, (var + eps).rsqrt()


def _batch_norm_gather_stats_with_counts(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    share = (counts.double() / counts.double().sum())[:, None]
    whole = (share * mean.double()).sum(0)
    var = (share * (invstd.double() ** -2 - eps + (mean.double() - whole) ** 2)).sum(0)
    n = counts.double().sum()
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(whole.float(), momentum)
        running_var.lerp_((var * n / (n - 1)).float(), momentum)
    return whole.float(), (var + eps).rsqrt().float()


def _batch_norm_elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    scaled = (x.float() - _column(mean, x)) * _column(invstd * weight, x) + _column(bias, x)
    return scaled.to(x.dtype)


def _batch_norm_backward_reduce(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, input_g: bool, weight_g: bool, bias_g: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = grad.float()
    sum_dy = g.sum(_channels(x))
    sum_dy_xmu = (g * (x.float() - _column(mean, x))).sum(_channels(x))
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()


def _batch_norm_backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    n = count.sum()
    centred = (x.float() - _column(mean, x)) * _column(invstd**2 * sum_dy_xmu / n, x)
    out = (grad.float() - _column(sum_dy / n, x) - centred) * _column(invstd * weight, x)
    return out.to(x.dtype)


CUDA_ONLY: dict[str, Callable[..., Any]] = {
    f"aten.{function.__name__.removeprefix('_')}.default": function
    for function in (
        _batch_norm_stats,
        _batch_norm_gather_stats_with_counts,
        _batch_norm_elemt,
        _batch_norm_backward_reduce,
        _batch_norm_backward_elemt,
    )
}
"""What torch has for CUDA alone, from its definition."""
