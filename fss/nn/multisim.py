"""MSANet's two modules: similarity of query and support at every layer, and attention to the support's class.

Multi-similarity (section 4.1, Eq. 1-6) compares every position of a query with the pixels of the object in a support,
separately for each layer of the backbone: 4 + 6 + 3 maps with a ResNet-50, 30 with a ResNet-101, 7 with a VGG-16.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.collectives import Collectives
from fss.nn.backbones import BACKBONES, Backbone, BackboneName, Step
from fss.nn.norm import synchronise
from fss.nn.region import positions_first, resize
from fss.nn.similarity import averages, by_episode, mean_weights, relu_cosine_mean, select

EPSILON = 1e-5  # added to the length of every vector
WIDTH = 64  # channels that the maps are embedded in, alpha in the paper

Squeeze = Literal["mask", "feature"]
"""The rule for the pixels of an object that count. 'mask' (reference implementation): those with at least the mean
share of the class. 'feature' (Eq. 4): those of the class whose masked feature, averaged over channels, is above its
mean over the map."""


def layer_count(name: BackboneName) -> int:
    """The number of maps that multi-similarity has with this backbone."""
    return BACKBONES[name].compared_layers


@torch.no_grad()
def compared_layers(backbone: Backbone, image: Tensor) -> Iterator[Step]:
    """Compute blocks 2, 3 and 4 of images [B, 3, S, S] one by one, each with the layers that are compared (`inner`).

    Of a ResNet these are all layers of these blocks, before their ReLU; of a VGG, as in MSANet's reference
    implementation, the convolutions of blocks 3 and 4 and the map of block 4; of a ViT all transformer blocks.
    """
    yield from backbone.compared_layers(image)


def class_share(mask: Tensor, name: BackboneName) -> Tensor:
    """The share of the class (mask is 1) at each position, masks uint8 [M, S, S] -> float32 [M, 1, s, s].

    Layers resize it to their size. As in MSANet's reference implementation the mask passes through two steps: s is the
    side of the first map that it extracts, block 1 of a ResNet (s = 2k + 1 for S = 8k + 1) and block 3 of a VGG before
    its pool (s = k + 1), and the first step is to twice that.
    """
    entry = BACKBONES[name]
    first = entry.sides.positions(mask.shape[-1], entry.mask_stride)
    return resize(resize((mask == 1).float()[:, None], (2 * first, 2 * first)), (first, first))


def squeezed(means: Tensor | None, share: Tensor) -> Tensor:
    """Select the pixels of supports that count, bool [..., N], by the share of the class [..., N]; none without it.

    means: the features' means over channels [..., N], for the rule 'feature'; None for 'mask'.
    """
    inside = share > 0
    if means is not None:
        value = means * share
        return inside & (value > value.mean(-1, keepdim=True))
    mean = share.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1)
    return inside & (share >= mean.clamp(max=share.amax(-1, keepdim=True)))  # the mean of equal numbers may round up


def unit(rows: Tensor) -> Tensor:
    """Divide rows [..., C] by their length plus EPSILON, float32; zero vectors stay zero."""
    rows = rows.float()
    return rows / (rows.norm(dim=-1, keepdim=True) + EPSILON)


def mean_similarity(query: Tensor, shots: Sequence[Tensor]) -> Tensor:
    """The mean positive cosine of query positions [N, C] with object pixels, unit rows [n, C] a shot (Eq. 5): [N].

    The mean is over the pixels of a shot, and then over shots. The result scales with the length of the query's
    vectors, so a caller may divide either by that length. A shot without pixels counts as zeros.
    """
    weights = averages([len(columns) for columns in shots], query.device).mean(0, keepdim=True)  # [1, all n]
    return relu_cosine_mean(query.mT, torch.cat([columns.float() for columns in shots]), weights)[0]


def layer_similarity(layer: Tensor, share: Tensor, rule: Squeeze, skip: int = 0) -> Tensor:
    """The similarity map of one layer, mean over all shots but the first `skip`: float32 [B, 1, h, w].

    layer: [(1 + K) B, C, h, w], queries first, then the supports shot by shot; share: `class_share` [K B, 1, s, s].
    """
    b, size = len(layer) - len(share), layer.shape[2:]
    shots = len(share) // b

    def by_shot(x: Tensor) -> Tensor:
        return x.unflatten(0, (shots, b))[skip:].transpose(0, 1)  # [K B, ...] -> [B, K, ...]

    rows, share = positions_first(layer), resize(share, size).flatten(1)  # [(1 + K) B, N, C], [K B, N]
    similarity = by_episode(partial(_object_similarity, rule=rule), rows[:b], by_shot(rows[b:]), by_shot(share))
    return similarity.view(b, 1, *size)


def _object_similarity(query: Tensor, support: Tensor, share: Tensor, rule: Squeeze) -> Tensor:
    """The similarity [B, N] of queries [B, N, C] with the objects in supports [B, K, N, C], by share [B, K, N]."""
    kept = squeezed(support.float().mean(3) if rule == "feature" else None, share)  # [B, K, N]
    weights = mean_weights(kept) / kept.shape[1]
    flat = (x.flatten(1, 2) for x in (kept, support, share, weights))  # [B, K N, ...]
    _, columns, share, weights = select(*flat)
    columns = unit(columns.float() * share[..., None])  # [B, n, C]
    query = query.float()
    return relu_cosine_mean(query.mT, columns, weights[:, None])[:, 0] / (query.norm(dim=2) + EPSILON)


class SimilarityEmbedding(nn.Module):
    """Similarity maps [B, layers, h, w] -> [B, WIDTH, h, w]: 1x1 convolution, batch norm, ReLU.

    collectives: those of the ranks over whose batches batch norm takes its statistics. None: the statistics stay mean 0
    and variance 1, so that it only scales and shifts.
    """

    def __init__(self, layers: int, collectives: Callable[[], Collectives] | None):
        super().__init__()
        self.updates_statistics = collectives is not None
        self.layers = nn.Sequential(nn.Conv2d(layers, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True))
        if collectives is not None:
            synchronise(self, collectives)
        self.train()

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and self.updates_statistics)

    def forward(self, maps: Tensor) -> Tensor:
        return self.layers(maps)


class Attention(nn.Module):
    """A support's map with channels weighed by the mean feature of its object (section 4.2, Eq. 8 and 9)."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim), nn.Dropout(dropout), nn.Sigmoid()
        )

    def forward(self, support: Tensor, mask: Tensor) -> Tensor:
        """Features [M, D, h, w] and masks uint8 [M, S, S] (1 is the class) -> [M, D, h, w].

        The mean of the masked features is over all positions, as in MSANet's reference implementation, not over those
        of the mask.
        """
        nearest = F.interpolate((mask == 1).float()[:, None], support.shape[2:])  # [M, 1, h, w]
        gate = self.gate((support * nearest).mean((2, 3)))  # [M, D]
        return gate[:, :, None, None] * support
