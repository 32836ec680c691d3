"""Region maps and prototypes, which show the object in a query image (QGNet, section IV-B; PFENet, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fss.nn.deterministic import bilinear
from fss.nn.similarity import by_episode, select
from shards.format import IGNORE_LABEL

EPSILON = 1e-7  # Eq. 12
AREA = 0.0005  # added to the area of a mask, as PFENet does
IGNORE = IGNORE_LABEL  # value of the pixels of a mask that are unknown and count nowhere
COLUMNS = 1024  # similarities are computed for this number of columns at a time: at 641 px 27 MB instead of 172


def positions_first(features: Tensor) -> Tensor:
    """Maps [B, C, h, w] -> one vector per position, row by row, [B, h w, C]; a view of channels_last maps."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def flatten_normalize(features: Tensor) -> Tensor:
    """Maps [B, C, h, w] -> one unit vector per position, float32 [B, h w, C]; zero vectors stay zero."""
    return F.normalize(positions_first(features).float(), dim=-1)


def max_cosine(query: Tensor, columns: Tensor) -> Tensor:
    """The largest cosine of every query position with any column (Eq. 9 and 10).

    query: unit rows [B, N, C]; columns: unit rows [B, M, C], or [M, C] for all. Gives [B, N]; zeros if M is 0.
    Gradients flow to both through the largest pair.
    """
    chunks = columns.split(COLUMNS, dim=-2)
    with torch.autocast(query.device.type, enabled=False):  # three digits would not tell positions apart
        largest = [(query @ chunk.mT).max(-1).values for chunk in chunks if chunk.shape[-2]]  # [B, N] each
    if not largest:
        return query.new_zeros(query.shape[:-1])
    return torch.stack(largest).amax(0) if len(largest) > 1 else largest[0]


def min_max(similarity: Tensor) -> Tensor:
    """Shift and scale every row of [B, N] to 0..1 (Eq. 12); a constant row becomes zeros."""
    low, high = similarity.aminmax(dim=1, keepdim=True)
    return (similarity - low) / (high - low + EPSILON)


def prior_region_map(query: Tensor, prior: Tensor) -> Tensor:
    """The prior region map [B, 1, h, w] in 0..1, low on objects (Eq. 9-12).

    It is the largest cosine of each position with the features of the prior extractor, scaled. query [B, C, h, w] are
    block-4 features of the backbone, prior [B, C, h', w'] of the prior extractor, both of the query image.
    """
    similarity = min_max(max_cosine(flatten_normalize(query), flatten_normalize(prior)))
    return similarity.unflatten(1, query.shape[2:])[:, None]


def guided_similarity(query: Tensor, columns: Tensor) -> Tensor:
    """The guided region map [B, N] of queries, unit rows [B, N, C], by the object's unit vectors [n, C] or [B, n, C].

    The support has N positions, too. Those outside the mask count with cosine 0, that of an empty vector, so no query
    position is below it.
    """
    similarity = max_cosine(query, columns)
    if columns.shape[-2] < query.shape[1]:
        similarity = similarity.clamp(min=0)
    return min_max(similarity)


def guided_region_map(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    """The guided region map [B, 1, h, w] in 0..1, high on objects of the support's class; PFENet's prior mask.

    It is the largest cosine of each query position with the object in a support image, scaled; zeros for an empty mask.
    query and support are block-4 features [B, C, h, w], the latter of masked block-3 features; mask [B, 1, h, w] is at
    least 0.
    """

    def similarity(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
        inside, rows = select(mask.flatten(1) > 0, flatten_normalize(support))
        return guided_similarity(flatten_normalize(query), rows * inside[..., None])  # empty vectors outside

    return by_episode(similarity, query, support, mask).unflatten(1, query.shape[2:])[:, None]


def downsample_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """The share of the class (mask is 1) at each position, masks uint8 [B, S, S] -> float32 [B, 1, h, w].

    Bilinear with aligned corners, as in the reference implementations; unknown pixels count as background.
    """
    return resize((mask == 1).float()[:, None], size)


def masked_average(features: Tensor, mask: Tensor) -> Tensor:
    """The mean of features [B, C, h, w] weighted by a mask [B, 1, h, w], float32 [B, C]: a prototype.

    `AREA` is added to the area of the mask; an empty mask gives zeros.
    """
    return (features.float() * mask).sum((2, 3)) / (mask.sum((2, 3)) + AREA)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize [B, C, H, W] -> [B, C, h, w], bilinear with aligned corners; unchanged if the size fits."""
    if x.shape[2:] == tuple(size):
        return x
    return bilinear(x, size)
