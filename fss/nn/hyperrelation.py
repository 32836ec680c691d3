"""Two similarities of a query to the object in its supports, layer by layer (MSHNet, sections 4.1 and 4.2).

Both are averages over the pixels of the object, for each shot. A layer is a map [B, C, h, w]. The layers of a block
have the same shape, so they share one set of object positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.nn.region import positions_first
from fss.nn.similarity import averages, relu_cosine_mean

ROUNDING = 1e-6  # the mean of equal shares may lie this much above them
SHORTEST = 1e-12  # lengths are at least this, as in torch's normalize


def object_positions(mask: Tensor, size: Sequence[int]) -> Tensor:
    """The positions of a map that belong to the object (the selector of Eq. 2), bool [B, h w].

    mask: uint8 [B, S, S], 1 the class; unknown pixels count as background. A position belongs to the object if the
    class covers its cell at least as much as, on average, the cells that it touches. So an object of a single pixel
    keeps a position, and a large one loses the cells at its border. Without an object there is none.
    """
    share = F.adaptive_avg_pool2d((mask == 1).float()[:, None], (size[0], size[1])).flatten(1)  # [B, h w]
    touched = (share > 0).sum(1, keepdim=True)
    least = share.sum(1, keepdim=True) / touched.clamp(min=1) * (1 - ROUNDING)
    return (share > 0) & (share >= least)


ObjectPixels = list[list[Tensor]]
"""For B supports and L layers, the features of the object's n pixels, float32 [n, C] (Eq. 2)."""


@torch.no_grad()
def object_pixels(support: Sequence[Tensor], positions: Tensor) -> ObjectPixels:
    """The features of L layers [B, C, h, w] at `object_positions`, bool [B, h w]."""
    places = [chosen.nonzero()[:, 0] for chosen in positions]  # B of [n]
    return [[positions_first(x)[row, index].float() for x in support] for row, index in enumerate(places)]


class Relation(NamedTuple):
    """Prototypes and similarities of B episodes of K shots in a block of L layers, float32."""

    prototypes: Tensor
    """[B, K, L, C]."""
    cosine: Tensor | None
    """[B, K, L, h, w]."""


@torch.no_grad()
def relate(query: Sequence[Tensor], shots: Sequence[ObjectPixels], *, cosine: bool = True) -> Relation:
    """Compute prototypes (Eq. 3) and, if wanted, cosine similarity (Eq. 5); both are 0 for a shot without an object.

    query: L layers [B, C, h, w]; shots: for each of K shots the `object_pixels` of B supports. All shots of an episode
    are compared with its query at once.
    """
    b, channels, h, w = query[0].shape
    shape = b, len(shots), len(query)
    prototypes = query[0].new_empty(*shape, channels, dtype=torch.float32)
    similarity = query[0].new_empty(*shape, h * w, dtype=torch.float32) if cosine else None
    for e in range(b):
        share = averages([len(shot[e][0]) for shot in shots], query[0].device)  # [K, n]
        for i, layer in enumerate(query):
            columns = torch.cat([shot[e][i] for shot in shots])  # [n, C]
            with torch.autocast(layer.device.type, enabled=False):
                prototypes[e, :, i] = share @ columns
            if similarity is not None:
                rows = positions_first(layer[e : e + 1])[0].float()  # [h w, C]
                products = relu_cosine_mean(rows.mT, F.normalize(columns, dim=1), share)  # [K, h w]
                similarity[e, :, i] = products / rows.norm(dim=1).clamp(min=SHORTEST)
    return Relation(prototypes, None if similarity is None else similarity.unflatten(-1, (h, w)))


class GenerativeSimilarity(nn.Module):
    """sigmoid(W [prototype || query]) at every position (Eq. 4), with its own W for each of L layers, no bias.

    The product splits into a half for the prototype and a half for the query. A prototype is an average, so its half is
    the average of the products of W with the object's pixels: an image needs one number for each position and half.
    """

    def __init__(self, layers: int, channels: int):
        super().__init__()
        bound = (2 * channels) ** -0.5  # torch's default for a linear layer
        self.weight = nn.Parameter(torch.empty(layers, 2, channels).uniform_(-bound, bound))

    def of_prototypes(self, prototypes: Tensor) -> Tensor:
        """Compute the prototypes' half, [B, K, L, C] -> [B, K, L]."""
        return (prototypes * self.weight[:, 0]).sum(-1)

    def of_supports(self, layers: Sequence[Tensor]) -> Tensor:
        """Compute, from L maps [B, C, h, w], [B, L, h, w] whose average over an object is `of_prototypes` of it."""
        return self._project(layers, 0)

    def of_queries(self, layers: Sequence[Tensor]) -> Tensor:
        """Compute the query's half, L maps [B, C, h, w] -> [B, L, h, w]."""
        return self._project(layers, 1)

    def _project(self, layers: Sequence[Tensor], half: int) -> Tensor:
        weights = self.weight[:, half]
        products = [x.permute(0, 2, 3, 1) @ w.to(x.dtype) for x, w in zip(layers, weights, strict=True)]  # [B, h, w]
        return torch.stack(products, 1).float()

    def forward(self, prototype: Tensor, query: Tensor) -> Tensor:
        """Halves [B, K, L] and [B, L, h, w] -> [B, K, L, h, w] in 0..1."""
        return torch.sigmoid(prototype[..., None, None] + query[:, None])
