"""Two similarities of a query to the object in its supports, layer by layer (MSHNet, sections 4.1 and 4.2).

Both are averages over the pixels of the object, for each shot. A layer is a map [B, C, h, w]. The layers of a block
have the same shape, so they share one set of object positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.nn.similarity import block_diagonal, episodes_together, mean_weights, relu_cosine_mean, select

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


class ObjectPixels(NamedTuple):
    """The objects in the supports of b episodes, of one shot (Eq. 2)."""

    layers: Tensor
    """Features of L layers, float32 [b, L, n, C]."""
    weights: Tensor
    """[b, n], which average the features to a prototype; 0 for pixels outside the object."""


def stack_layers(layers: Sequence[Tensor]) -> Tensor:
    """Stack L maps [B, C, h, w] to [B, L, h, w, C]: one kernel then works on all of them."""
    return torch.stack([layer.permute(0, 2, 3, 1) for layer in layers], 1)


@torch.no_grad()
def object_pixels(support: Tensor, positions: Tensor) -> list[ObjectPixels]:
    """The features of L layers, `stack_layers` [B, L, h, w, C], at `object_positions`, bool [B, h w].

    On a CPU for each of B episodes, with the pixels of the object only; elsewhere for all B together, with all pixels
    (see fss.nn.similarity).
    """
    together = episodes_together(positions)
    selected = []
    for rows, inside in zip(support.flatten(2, 3).split(together), positions.split(together), strict=True):
        inside, pixels = select(inside, rows.transpose(1, 2))  # [b, n], [b, n, L, C]
        selected.append(ObjectPixels(pixels.transpose(1, 2).float(), mean_weights(inside)))
    return selected


class Relation(NamedTuple):
    """Prototypes and similarities of B episodes of K shots in a block of L layers, float32."""

    prototypes: Tensor
    """[B, K, L, C]."""
    cosine: Tensor | None
    """[B, K, L, h, w]."""


@torch.no_grad()
def relate(query: Tensor, shots: Sequence[list[ObjectPixels]], *, cosine: bool = True) -> Relation:
    """Compute prototypes (Eq. 3) and, if wanted, cosine similarity (Eq. 5); both are 0 for a shot without an object.

    query: L layers, `stack_layers` [B, L, h, w, C]; shots: for each of K shots the `object_pixels` of B supports. All
    shots of an episode are compared with its query at once.
    """
    queries = query.flatten(2, 3).split(len(query) // len(shots[0]))  # as many episodes as an ObjectPixels has
    relations = [_relate(rows, pixels, cosine) for rows, *pixels in zip(queries, *shots, strict=True)]
    prototypes = torch.cat([relation.prototypes for relation in relations])
    maps = [relation.cosine for relation in relations if relation.cosine is not None]
    return Relation(prototypes, torch.cat(maps).unflatten(-1, query.shape[2:4]) if maps else None)


def _relate(query: Tensor, shots: Sequence[ObjectPixels], cosine: bool) -> Relation:
    """As `relate`, for b episodes: queries [b, L, N, C] -> prototypes [b, K, L, C] and cosines [b, K, L, N]."""
    weights = block_diagonal([shot.weights for shot in shots])[:, None]  # [b, 1, K, n], n pixels of all shots
    columns = torch.cat([shot.layers for shot in shots], 2)  # [b, L, n, C]
    with torch.autocast(query.device.type, enabled=False):
        prototypes = (weights @ columns).transpose(1, 2)
    if not cosine:
        return Relation(prototypes, None)
    query = query.float()
    products = relu_cosine_mean(query.mT, F.normalize(columns, dim=3), weights)  # [b, L, K, N]
    similarity = products / query.norm(dim=3).clamp(min=SHORTEST)[:, :, None]
    return Relation(prototypes, similarity.transpose(1, 2))


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

    def of_supports(self, layers: Tensor) -> Tensor:
        """Compute [B, L, h, w], whose average over an object is `of_prototypes` of it, of layers [B, L, h, w, C]."""
        return self._project(layers, 0)

    def of_queries(self, layers: Tensor) -> Tensor:
        """Compute the query's half, `stack_layers` [B, L, h, w, C] -> [B, L, h, w]."""
        return self._project(layers, 1)

    def _project(self, layers: Tensor, half: int) -> Tensor:
        products = layers.flatten(2, 3) @ self.weight[:, half, :, None].to(layers.dtype)  # [B, L, h w, 1]
        return products.float().view(layers.shape[:4])

    def forward(self, prototype: Tensor, query: Tensor) -> Tensor:
        """Halves [B, K, L] and [B, L, h, w] -> [B, K, L, h, w] in 0..1."""
        return torch.sigmoid(prototype[..., None, None] + query[:, None])
