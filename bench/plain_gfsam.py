"""GF-SAM's alignment, graph and gates at full resolution, equation by equation: what speed is measured against.

The plain way, and that of the reference implementation: a whole correlation matrix for every mask that it is averaged
under; every mask upsampled to the image, kept, and resized as floats for the graph and for the gates; the table of
distances entry by entry. No work is added to that; every operation is torch's own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F


class Plain(NamedTuple):
    """The decisions of the plain version: points (x, y) [N, 2], the rest [N], mask bool [size, size]."""

    points: Tensor
    clusters: Tensor
    margin: Tensor
    accepted: Tensor
    consistent: Tensor
    fallback: bool
    mask: Tensor


def segment(
    target: Tensor,
    references: Tensor,
    ref_masks: Tensor,
    logits: Callable[[Tensor], Tensor],
    size: int,
    stage: Callable[[str], AbstractContextManager] = nullcontext,
) -> Plain:
    """target [g g, C] and references [K, g g, C] are patch tokens, ref_masks uint8 [K, size, size]; `logits` gives the
    decoder's [N, s, s] for prompt pixels (x, y) [N, 2]. `stage` is called with a stage's name and times what is inside.
    """
    grid = round(len(target) ** 0.5)
    with stage("maps, points"):
        unit = normalised(target)
        mean, negative, select = maps(unit, references, ref_masks, grid)
        points = top_points(select, grid)
        prompts = (points * size / grid).long()
    decoded = logits(prompts)
    if len(points) == 0:
        empty = torch.zeros(0, dtype=torch.bool)
        return Plain(points, empty.long(), empty.float(), empty, empty, False, torch.zeros(size, size).bool())
    with stage("upsampling"):
        parts = [F.interpolate(x.float()[:, None], (size, size), mode="bilinear") > 0 for x in decoded.split(64)]
        masks = torch.cat(parts)[:, 0]  # [N, size, size]
    with stage("graph, unions"):
        small = F.interpolate(masks.float()[:, None], (grid, grid))[:, 0] > 0  # [N, g, g], of each the prompt's pixel
        covers = small[:, points[:, 1], points[:, 0]]
        clusters = torch.from_numpy(connected_components(covers.numpy(), connection="weak")[1]).long()
        unions = torch.stack([masks[clusters == p].any(0) for p in range(int(clusters.max()) + 1)])
    with stage("positive gating"):
        positive, negative = mean * mean, negative * (mean.max() + mean.min()) / 2
        accepted, margin, last = growth(on_grid(masks, grid), clusters, positive, negative)
    with stage("overshooting gating"):
        consistent = self_consistent(unit, on_grid(unions, grid), points, clusters, grid)
    with stage("merge"):
        mask = masks[accepted & consistent].any(0)
        fallback = not mask.any()
        if fallback:
            mask = masks[torch.where(accepted ^ consistent, last, 0).argmax()]
    return Plain(points, clusters, margin, accepted, consistent, fallback, mask)


def normalised(tokens: Tensor) -> Tensor:
    """Channels to unit length over the positions, then positions over the channels."""
    return F.normalize(F.normalize(tokens, dim=0), dim=1)


def maps(unit: Tensor, references: Tensor, ref_masks: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """S+ mean, S- mean and S p [g g]."""
    if not (ref_masks == 1).any():
        centre = slice(ref_masks.shape[1] // 2 - 7, ref_masks.shape[1] // 2 + 7)
        ref_masks = ref_masks.clone()
        ref_masks[:, centre, centre] = 1
    rows = []
    for tokens, mask in zip(references, ref_masks, strict=True):
        full = (mask == 1).float()[None, None]
        weight = F.interpolate(full, (grid, grid), mode="bilinear", align_corners=True).flatten()
        other = normalised(tokens)
        mean, largest = similarity(unit, other, weight)
        negative, _ = similarity(unit, other, 1 - weight)
        rows.append(torch.stack([mean, largest, negative]))
    mean, largest, negative = torch.stack(rows).mean(0)
    select, against = min_max_scaled(mean * largest), min_max_scaled(negative)
    return mean, negative, select * (against <= select)


def similarity(unit: Tensor, other: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the largest cosine of each row of `unit` [g g, C] with those of `other`, by weight [g g]."""
    correlation = unit @ other.T * weight  # [g g, g g]
    return correlation.sum(1) / (weight.sum() + 1e-7 * len(weight)), correlation.max(1).values


def min_max_scaled(x: Tensor) -> Tensor:
    span = x.max() - x.min()
    return (x - x.min()) / (span + 1e-6) if span > 1e-6 else torch.zeros_like(x)


def top_points(select: Tensor, grid: int) -> Tensor:
    """The best (x, y) by x, then y: as many as the map sums to, 128 at most."""
    count = min(int(select.sum()), 128)
    if count == 0 and select.sum() > 0:
        count = 1
    hot = torch.zeros_like(select)
    hot[select.topk(count).indices] = 1
    return hot.view(grid, grid).T.nonzero()


def on_grid(masks: Tensor, grid: int) -> Tensor:
    """Masks [N, size, size] -> [N, g g], bilinear."""
    return F.interpolate(masks.float()[:, None], (grid, grid), mode="bilinear").flatten(1)


def growth(soft: Tensor, clusters: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P+, the margin of each mask, and the last margin of each mask's cluster."""
    polarity = torch.where(positive > negative, 1.0, -1.0)
    rank = (soft * (positive - negative)).sum(1) / (soft.sum(1) + 1e-6)
    margin, last = torch.zeros(len(soft)), torch.zeros(len(soft))
    accepted = torch.zeros(len(soft), dtype=torch.bool)
    for p in range(int(clusters.max()) + 1):
        members = (clusters == p).nonzero()[:, 0]
        covered = torch.zeros_like(soft[0])
        for i in members[rank[members].argsort(descending=True, stable=True)].tolist():
            new = soft[i] * (1 - covered)
            margin[i] = (new * polarity).sum()
            if margin[i] > 0:
                accepted[i] = True
                covered += new
        last[members] = margin[i]
    return accepted, margin, last


def self_consistent(unit: Tensor, unions: Tensor, points: Tensor, clusters: Tensor, grid: int) -> Tensor:
    """P sc after the majority rule."""
    means = torch.stack([similarity(unit, unit, union)[0] for union in unions])  # [nc, g g]
    means = means[:, points[:, 1] * grid + points[:, 0]]  # [nc, N]
    for p in range(len(unions)):
        members = points[clusters == p].double()
        for i, point in enumerate(points):
            distance = (members - point).norm(dim=1).min()
            means[p, i] /= distance if distance > 0 else 1
    consistent = means.argmax(0) == clusters
    for p in range(len(unions)):
        if consistent[clusters == p].float().mean() < 0.5:
            consistent[clusters == p] = False
    return consistent
