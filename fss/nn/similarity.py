"""The similarity of query positions to the pixels of an object: the mean positive cosine (MSHNet, Eq. 5)."""

from collections.abc import Sequence

import torch
from torch import Tensor

PRODUCTS = 1 << 20  # products in memory at a time: 4 MB, which fits into a core's cache


def averages(counts: Sequence[int], device: torch.device | None = None) -> Tensor:
    """The matrix [K, n] that averages K groups of consecutive rows, `counts` rows each; an empty group gives 0."""
    size = torch.tensor(counts, device=device)
    group = torch.repeat_interleave(size, output_size=sum(counts))  # [n], the group of every row
    return (group == torch.arange(len(counts), device=device)[:, None]) / size.clamp(min=1)[:, None]


@torch.no_grad()
def relu_cosine_mean(query: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Compute weights @ relu(columns @ query), float32 [..., K, N]; with `averages`, the mean positive cosine a shot.

    query: unit vectors [..., C, N] of N positions; columns: unit vectors [..., n, C] of object pixels of all shots;
    weights: at least 0, [K, n]. The query's vectors may have another length, which then scales the result. No more than
    `PRODUCTS` cosines exist at a time. They are exempt from autocast: three digits are too few for their mean.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, columns = query.float(), columns.float()
        lead = torch.broadcast_shapes(query.shape[:-2], columns.shape[:-2])
        means = query.new_zeros(*lead, len(weights), query.shape[-1])  # [..., K, N]
        rows = max(1, PRODUCTS // (lead.numel() * query.shape[-1]))
        for some, share in zip(columns.split(rows, dim=-2), weights.split(rows, dim=-1), strict=True):
            means += share @ (some @ query).relu_()
        return means
