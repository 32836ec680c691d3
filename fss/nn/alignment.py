"""Positive-negative alignment: features and reference masks -> similarity maps and point prompts (GF-SAM, section 4.1).

Everything here is a function of patch features and masks; no network is involved. A mean over the positions of a
reference is linear in the target's features, so one vector for the object and one for the background replace all
positions. The maximum needs only the positions that the object touches. `encode_support` keeps no more of a reference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fss.nn.gfsam_rules import Rules
from fss.nn.region import downsample_mask
from fss.nn.transfer import to_device, to_host

EPSILON = 1e-6  # in the denominator of M of Eq. 3; a map whose values span less is constant up to rounding
AREA = 1e-7  # added for every position to the area of a mask
SQUARE = 14  # side, pixels, of the square that replaces the object if every reference mask is empty
ALIGNED = 16  # columns: a product of matrices takes a third longer if its rows start at odd places in memory


@dataclass(frozen=True)
class Alignment:
    """Similarity of a target of g x g positions to its references; maps are float32 [g, g], means over references.

    All of it is on the CPU, where the decisions are made.
    """

    mean: Tensor
    """S+ mean of Eq. 2."""
    max: Tensor
    """S+ max of Eq. 2."""
    negative: Tensor
    """S- mean, the similarity with the references' background."""
    select: Tensor
    """S p of Eq. 3, from which points are chosen."""
    points: Tensor
    """The chosen positions (x, y), int64 [N, 2], sorted by x and then y; this order decides ties later."""

    @property
    def grid(self) -> int:
        """The side g of the maps, positions."""
        return len(self.mean)


def unit_features(tokens: Tensor, rules: Rules) -> Tensor:
    """Normalize the patch tokens of one image, [g g, C], to float32 unit vectors [g g, C].

    Values that are not finite count as zeros. With `rules.channel_norm` every channel is scaled to unit length over the
    image first.
    """
    features = tokens.float().nan_to_num(0, 0, 0)  # a copy, changed in place below
    if rules.channel_norm:
        features /= features.square().sum(0).sqrt().clamp(min=1e-12)  # the norm of torch is slow along columns
    features /= features.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return features


def encode_support(features: Tensor, mask: Tensor, rules: Rules) -> dict[str, Tensor]:
    """Compute what `align` needs of a reference: unit features [g g, C] and a mask uint8 [1, S, S], 1 the object.

    Returns tensors by name with a leading dimension of 1. Every other value of the mask is background. For an empty
    mask the names with 'spare_' describe a square in the centre, which counts if all references are empty.
    """
    (described,) = encode_supports([(features, mask)], rules)
    return described


def encode_supports(references: Sequence[tuple[Tensor, Tensor]], rules: Rules) -> list[dict[str, Tensor]]:
    """Compute `encode_support` of K >= 1 references, features [g g, C] and mask [1, S, S] each; the host waits once."""
    grids = [(math.isqrt(len(features)),) * 2 for features, _ in references]
    weights = [downsample_mask(mask, grid) for grid, (_, mask) in zip(grids, references, strict=True)]
    present = [(mask == 1).any().float() for _, mask in references]
    on_host = to_host(*weights, *present)
    described = []
    for i, ((features, mask), grid) in enumerate(zip(references, grids, strict=True)):
        description = _describe(features, on_host[i].flatten(), rules)
        if not on_host[len(references) + i]:
            square = torch.zeros(mask.shape, dtype=torch.uint8)
            start = (mask.shape[-1] - SQUARE) // 2
            square[:, start : start + SQUARE, start : start + SQUARE] = 1
            spare = _describe(features, downsample_mask(square, grid).flatten(), rules)
            description |= {f"spare_{name}": tensor for name, tensor in spare.items()}
        described.append(description)
    return described


def _describe(features: Tensor, weight: Tensor, rules: Rules) -> dict[str, Tensor]:
    """See `encode_support`; weight: the share of the object at each position, float32 [g g], on the CPU."""
    if not rules.soft_mask:
        weight = (weight >= 0.5).float()
    sides = torch.stack([weight, 1 - weight])  # [2, g g]: object, background
    sides = sides / (sides.sum(1, keepdim=True) + AREA * len(features))
    sides = to_device(sides, features.device)
    touched = (weight > 0).nonzero()[:, 0]
    columns = features.index_select(0, to_device(touched, features.device))
    columns *= to_device(weight[touched, None], features.device)  # a larger share of the object gives a larger cosine
    if rules.relu or len(touched) < len(weight):
        zeros = ALIGNED - len(columns) % ALIGNED  # one is enough: a position outside counts with cosine 0
        columns = F.pad(columns, (0, 0, 0, zeros))
    description = {"columns": columns, "means": sides @ features}
    if rules.relu:  # ReLU is not linear: the means need every position
        description |= {"features": features, "sides": sides}
    return {name: tensor[None] for name, tensor in description.items()}


def align(target: Tensor, references: list[dict[str, Tensor]], rules: Rules) -> Alignment:
    """Compute maps and points of a target, unit features [g g, C], given K >= 1 results of `encode_support`.

    Similarities are computed on the device of the features, and the rest on the CPU after one copy. The maps are means
    over the references. No point is chosen if nothing stands out, or if the object is absent by `rules.presence`.
    """
    if all("spare_columns" in reference for reference in references):
        names = [name.removeprefix("spare_") for name in references[0] if name.startswith("spare_")]
        references = [{name: r[f"spare_{name}"] for name in names} for r in references]
    means = torch.stack([r["means"][0] for r in references])  # [K, 2, C]
    if rules.relu:
        both = torch.stack([r["sides"][0] @ (r["features"][0] @ target.T).relu() for r in references]).mean(0)
    else:
        both = means.mean(0) @ target.T
    largest = torch.stack([(target @ r["columns"][0].T).amax(1) for r in references]).mean(0)
    # In its own positive map a reference's object has |p|^2 and its background p n; below half-way is absent.
    halfway = (means[:, :1] * means).sum(2).mean()
    both, largest, halfway = to_host(both, largest, halfway)
    mean, negative = both  # [g g] each
    positive = {"mix": mean * largest, "mean": mean, "max": largest}[rules.similarity]
    select = aligned(positive, negative, rules)
    absent = rules.presence and mean.max() < halfway
    points = select.new_zeros(0, 2, dtype=torch.int64) if absent else choose(select, rules)
    grid = math.isqrt(len(target))
    mean, largest, negative, select = (x.view(grid, grid) for x in (mean, largest, negative, select))
    return Alignment(mean=mean, max=largest, negative=negative, select=select, points=points)


def aligned(positive: Tensor, negative: Tensor, rules: Rules) -> Tensor:
    """Compute S p of Eq. 3 from similarity maps [n]: M(positive), but 0 where M(negative) is larger. Returns [n]."""
    positive = min_max_scaled(positive)
    if not rules.negative:
        return positive
    negative = min_max_scaled(negative)
    outweighed = negative > positive if rules.keep_ties else negative >= positive
    return positive.masked_fill(outweighed, 0)


def min_max_scaled(x: Tensor) -> Tensor:
    """M of Eq. 3: values [n] shifted and scaled to 0..1; zeros if all are equal up to rounding."""
    low, high = x.aminmax()
    span = high - low
    return (x - low) / (span + EPSILON) * (span >= EPSILON)


def choose(select: Tensor, rules: Rules) -> Tensor:
    """Choose the points of a map [g g] on the CPU: positions (x, y), int64 [N, 2], sorted by x, then y.

    Their number is the sum of the map (Eq. 3) unless `rules.selection` is 'all'. The choice is made on the CPU in
    float32: of equal values those count that torch's topk takes there, as in the reference implementation.
    """
    grid, select = math.isqrt(len(select)), select.float()
    total = select.sum().item()
    count = int(total) if rules.selection == "sum" else int((select > 0).sum())
    if rules.one_point and total > 0:
        count = max(count, 1)
    if rules.limit:
        count = min(count, rules.limit)
    best = select.topk(count).indices
    columns_first = (best % grid * grid + best // grid).sort().values
    return torch.stack([columns_first // grid, columns_first % grid], 1)


def prompts(points: Tensor, grid: int, size: int, rules: Rules) -> Tensor:
    """Pixels (x, y) [N, 2] that prompt SAM for points [N, 2] on the grid, in an image of side `size` pixels."""
    if rules.prompt == "center":
        return (2 * points + 1) * size // (2 * grid)
    return points * size // grid
