"""What MSANet keeps of a backbone's layers between `encode` and `predict`, so that no image is looked at twice.

A layer goes by the name "layer BLOCK.PLACE". Of an image its unit vectors are kept, in half precision; of a support
those of the object.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fss.methods.base import Features
from fss.nn.multisim import Squeeze, mean_similarity, squeezed, unit
from fss.nn.region import positions_first, resize

CACHE_DTYPE = torch.float16  # a mean cosine moves in the fifth digit


def of_image(block: int, layers: Sequence[Tensor], squeeze: Squeeze) -> Features:
    """The layers [1, C, h, w] of a block: unit vectors [1, N, C], and the means that `squeeze` 'feature' compares."""
    kept = {f"layer {block}.{i}": unit(positions_first(layer)).to(CACHE_DTYPE) for i, layer in enumerate(layers)}
    if squeeze == "feature":
        kept |= {
            f"mean of layer {block}.{i}": positions_first(x).float().mean(2) for i, x in enumerate(layers)
        }  # [1, N]
    return kept


def names(features: Features) -> list[str]:
    """The layers among `features`, in the order of the network."""
    return [name for name in features if name.startswith("layer ")]


def block_of(name: str) -> int:
    """The block that a layer of this name is in."""
    return int(name.removeprefix("layer ").split(".")[0])


def of_object(features: Features, share: Tensor, squeeze: Squeeze) -> Features:
    """Of every layer that `of_image` kept, the pixels of the object that are compared, [1, n, C].

    share: of the class in the support, `class_share` [1, 1, s, s].
    """
    found = {}
    for name in names(features):
        rows = features[name]  # [1, N, C]
        side = math.isqrt(rows.shape[1])
        means = features[f"mean of {name}"][0] if squeeze == "feature" else None
        found[name] = rows[:, squeezed(means, resize(share, (side, side)).flatten())]
    return found


def similarity(
    query: Features, supports: Sequence[Features], size: tuple[int, int], skipped: Callable[[int], int]
) -> Tensor:
    """The similarity map of every layer, resized and side by side, [1, layers, *size].

    query: from `of_image`; supports: from `of_object`; skipped: block -> how many of the first supports do not count.
    """
    maps = []
    for name in names(query):
        rows = query[name][0].float()  # [N, C]
        side = math.isqrt(len(rows))
        found = mean_similarity(rows, [s[name][0] for s in supports[skipped(block_of(name)) :]])
        maps.append(resize(found.view(1, 1, side, side), size))
    return torch.cat(maps, 1)
