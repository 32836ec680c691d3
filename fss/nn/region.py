"""Region maps and prototypes: where in a query image the object may lie (QGNet, section IV-B; PFENet, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7  # Eq. 12
AREA = 0.0005  # added to the area of a mask, as PFENet does
IGNORE = 255  # value of the pixels of a mask or of labels that are unknown and count nowhere
COLUMNS = 1024  # similarities are computed for so many columns at a time: at 641 px 27 MB instead of 172


def positions_first(features: Tensor) -> Tensor:
    """Maps [B, C, h, w] -> one vector per position, row by row, [B, h w, C]; a view of channels_last maps."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def flatten_normalize(features: Tensor) -> Tensor:
    """Maps [B, C, h, w] -> one unit vector per position, float32 [B, h w, C]; zero vectors stay zero."""
    return F.normalize(positions_first(features).float(), dim=-1)


def max_cosine(query: Tensor, columns: Tensor) -> Tensor:
    """The largest cosine of every query position with any column (Eq. 9 and 10).

    query: unit rows [B, N, C]; columns: unit rows [B, M, C], or [M, C] for all. Gives [B, N]; zeros where M is 0.
    Gradients flow to both, through the pair that won.
    """
    chunks = columns.split(COLUMNS, dim=-2)
    with torch.autocast(query.device.type, enabled=False):  # three digits would not tell positions apart
        largest = [(query @ chunk.mT).max(-1).values for chunk in chunks if chunk.shape[-2]]  # [B, N] each
    if not largest:
        return query.new_zeros(query.shape[:-1])
    return torch.stack(largest).amax(0) if len(largest) > 1 else largest[0]


def min_max(similarity: Tensor) -> Tensor:
    """Every row of [B, N] shifted and scaled to 0..1 (Eq. 12); a constant row becomes zeros."""
    low, high = similarity.aminmax(dim=1, keepdim=True)
    return (similarity - low) / (high - low + EPSILON)


def prior_region_map(query: Tensor, prior: Tensor) -> Tensor:
    """How well each position of a query is explained by what the prior extractor sees in it (Eq. 9-12): low on objects.

    query [B, C, h, w] are block-4 features of the backbone, prior [B, C, h', w'] of the prior extractor, both of the
    query image. Gives [B, 1, h, w] in 0..1.
    """
    similarity = min_max(max_cosine(flatten_normalize(query), flatten_normalize(prior)))
    return similarity.unflatten(1, query.shape[2:])[:, None]


def foreground_vectors(support: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors of the positions of one support map [1, C, h, w] where its mask [1, 1, h, w] is not 0: [n, C]."""
    return flatten_normalize(support)[0, mask.flatten() > 0]


def guided_similarity(query: Tensor, columns: Tensor) -> Tensor:
    """The map of one query, unit rows [1, N, C], guided by `foreground_vectors` of a support map of N positions: [1, N].

    Positions outside the mask count with the cosine of an empty vector, 0: no query position falls below it.
    """
    similarity = max_cosine(query, columns)
    if len(columns) < query.shape[1]:
        similarity = similarity.clamp(min=0)
    return min_max(similarity)


def guided_region_map(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """How well each position of a query is explained by the object in a support image: high on objects of its class.

    query and support are block-4 features [B, C, h, w], the latter of masked block-3 features; mask [B, 1, h, w] is at
    least 0. This is PFENet's prior mask. Gives [B, 1, h, w] in 0..1; zeros for an empty mask.
    """
    rows = [
        guided_similarity(flatten_normalize(q), foreground_vectors(s, m))
        for q, s, m in zip(query.split(1), support.split(1), mask.split(1), strict=True)
    ]
    return torch.cat(rows).unflatten(1, query.shape[2:])[:, None]


def downsample_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Masks uint8 [B, S, S] -> the share of the class (mask is 1) at each position, float32 [B, 1, h, w].

    Bilinear with aligned corners, as the references resize everything; unknown pixels count as background.
    """
    return resize((mask == 1).float()[:, None], size)


def masked_average(features: Tensor, mask: Tensor) -> Tensor:
    """The mean of features [B, C, h, w] where mask [B, 1, h, w] says so, float32 [B, C]: a prototype.

    `AREA` is added to the mask's area; an empty mask gives zeros.
    """
    return (features.float() * mask).sum((2, 3)) / (mask.sum((2, 3)) + AREA)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, H, W] -> [B, C, h, w], bilinear with aligned corners; as it is where the size fits."""
    if x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
