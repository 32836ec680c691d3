"""The pixels of an object, and the similarity of query positions to them: the mean positive cosine (MSHNet, Eq. 5).

How many pixels an object has is known on a CPU at once. On another device the host would have to wait for the number,
so a training step selects nothing there: all positions are compared, and those outside the object weigh 0. An
evaluation, which keeps the pixels, waits once for all numbers (`true_indices`).
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

PRODUCTS = 1 << 20  # products in memory at a time on a CPU: 4 MB, which fits into a core's cache
DEVICE_PRODUCTS = 1 << 27  # and on another device: 512 MB, so that it has few kernels to launch


def select(mask: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """Select the rows [B, N, ...] at which a mask, bool [B, N], is true; returns the mask of the selection first.

    On a CPU the n rows of one episode (B = 1) remain, [1, n, ...], in their order. On another device everything is
    returned as it is, and the mask tells which rows count.
    """
    if mask.device.type != "cpu":
        return mask, *rows
    (index,) = true_indices(mask.unbind())
    return tuple(x[:, index] for x in (mask, *rows))


def episodes_together(batch: Tensor) -> int:
    """Return how many of B episodes, a tensor [B, ...], are computed together: one on a CPU, for `select`, else all."""
    return 1 if batch.device.type == "cpu" else len(batch)


def by_episode(function: Callable[..., Tensor], *batch: Tensor) -> Tensor:
    """Apply a function to tensors [B, ...] of B episodes: on a CPU one by one, so that `select` leaves no row too many.

    On another device to all at once. The results are concatenated.
    """
    together = episodes_together(batch[0])
    return torch.cat([function(*some) for some in zip(*(x.split(together) for x in batch), strict=True)])


def true_indices(masks: Sequence[Tensor]) -> list[Tensor]:
    """Compute the indices [n] at which each of several masks, bool [N], is true, ascending.

    On another device than a CPU the host waits once, for all numbers n together.
    """
    if not masks or masks[0].device.type == "cpu":
        return [mask.nonzero()[:, 0] for mask in masks]
    counts = torch.stack([mask.sum() for mask in masks]).cpu().tolist()
    return [mask.byte().argsort(descending=True, stable=True)[:n] for mask, n in zip(masks, counts, strict=True)]


def mean_weights(mask: Tensor) -> Tensor:
    """Compute weights [..., n] that average the rows at which a mask, bool [..., n], is true; 0 if there are none."""
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


def averages(counts: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Compute the matrix [K, n] that averages K groups of `counts` consecutive rows; 0 for an empty group."""
    return block_diagonal([torch.full((count,), 1 / max(count, 1), device=device) for count in counts])


def block_diagonal(weights: Sequence[Tensor]) -> Tensor:
    """Put K rows of weights [..., n_k] into a matrix [..., K, n]; its columns, n in all, belong to the rows in turn."""
    if len(weights) == 1:
        return weights[0].unsqueeze(-2)
    ends = list(accumulate(row.shape[-1] for row in weights))
    padded = [F.pad(row, (end - row.shape[-1], ends[-1] - end)) for row, end in zip(weights, ends, strict=True)]
    return torch.stack(padded, -2)


@torch.no_grad()
def relu_cosine_mean(query: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Compute weights @ relu(columns @ query), float32 [..., K, N]; with `averages`, the mean positive cosine a shot.

    query: unit vectors [..., C, N] of N positions; columns: unit vectors [..., n, C] of object pixels of all shots;
    weights: at least 0, [..., K, n]. The query's vectors may have another length, which then scales the result. No more
    than `PRODUCTS` cosines (`DEVICE_PRODUCTS`) exist at a time. They are exempt from autocast: three digits are too few
    for their mean.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, columns = query.float(), columns.float()
        lead = torch.broadcast_shapes(query.shape[:-2], columns.shape[:-2], weights.shape[:-2])
        products = PRODUCTS if query.device.type == "cpu" else DEVICE_PRODUCTS
        rows = max(1, products // (lead.numel() * query.shape[-1]))
        parts = zip(columns.split(rows, dim=-2), weights.split(rows, dim=-1), strict=True)
        some, share = next(parts)
        means = share @ (some @ query).relu_()
        for some, share in parts:
            means += share @ (some @ query).relu_()
        return means
