"""The layers of a backbone as MSANet keeps them between `encode` and `predict`, so that each image is encoded once.

A layer's name is "layer BLOCK.PLACE". Of an image its unit vectors are kept, in half precision; of a support those of
the object.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fss.methods.base import Features
from fss.nn.multisim import Squeeze, mean_similarity, squeezed, unit
from fss.nn.region import positions_first, resize

CACHE_DTYPE = torch.float16  # a mean cosine moves in the fifth digit


def image_layers(block: int, layers: Sequence[Tensor], squeeze: Squeeze) -> Features:
    """Normalize the layers [1, C, h, w] of a block to unit vectors [1, N, C]; N = h w.

    With `squeeze` 'feature' the means over channels [1, N], which that rule compares, are kept, too.
    """
    features = {f"layer {block}.{i}": unit(positions_first(layer)).to(CACHE_DTYPE) for i, layer in enumerate(layers)}
    if squeeze == "feature":
        means = {f"mean of layer {block}.{i}": positions_first(x).float().mean(2) for i, x in enumerate(layers)}
        features |= means  # [1, N] each
    return features


def layer_names(features: Features) -> list[str]:
    """List the names of the layers among `features`, in the order of the network."""
    return [name for name in features if name.startswith("layer ")]


def block_number(name: str) -> int:
    """Return the number of the block that a layer of this name is in."""
    return int(name.removeprefix("layer ").split(".")[0])


def object_masks(features: Features, share: Tensor, squeeze: Squeeze) -> dict[str, Tensor]:
    """Compute which vectors of each layer in the `features` from `image_layers` are compared, bool [N] by name.

    share: of the class in the support, `class_share` [1, 1, s, s].
    """
    masks = {}
    for name in layer_names(features):
        side = math.isqrt(features[name].shape[1])
        means = features[f"mean of {name}"][0] if squeeze == "feature" else None
        masks[name] = squeezed(means, resize(share, (side, side)).flatten())
    return masks


def similarity_maps(
    query: Features, supports: Sequence[Features], size: Sequence[int], skipped: Callable[[int], int]
) -> Tensor:
    """Compute the similarity map of every layer, resized and concatenated, [1, layers, *size].

    query: from `image_layers`; supports: vectors of such features, at the positions in `object_masks`; skipped: number
    of a block -> how many of the first supports do not count.
    """
    maps = []
    for name in layer_names(query):
        rows = query[name][0].float()  # [N, C]
        side = math.isqrt(len(rows))
        similarity = mean_similarity(rows, [s[name][0] for s in supports[skipped(block_number(name)) :]])  # [N]
        maps.append(resize(similarity.view(1, 1, side, side), size))
    return torch.cat(maps, 1)
