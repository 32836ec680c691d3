"""MSHNet as its equations are written: layer by layer, shot by shot, every intermediate result whole.

Nothing in it is done twice on purpose, and nothing is shared: the reference of bench/mshnet.py, with the networks of an
MSHNet, which are made plain for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch
from fss.methods.mshnet import BLOCKS, MSHNet
from fss.nn.hyperrelation import object_positions
from fss.nn.resnet import PointwiseConv2d


def prototype_similarity(query: Tensor, chosen: Tensor, support: Tensor, weight: Tensor) -> Tensor:
    """Eq. 3 and 4 of one layer and shot: query and support [1, C, h, w], chosen [h w], weight [2, C]; [1, 1, h, w]."""
    prototype = support.flatten(2)[0, :, chosen].mean(1)  # [C]
    tiled = prototype[None, :, None, None].expand_as(query)
    return torch.sigmoid(F.conv2d(torch.cat([tiled, query], 1), weight.reshape(1, -1, 1, 1)))


def cosine_similarity(query: Tensor, chosen: Tensor, support: Tensor) -> Tensor:
    """Eq. 2 and 5 of one layer and shot, [1, 1, h, w]."""
    pixels = F.normalize(support.flatten(2)[0, :, chosen], dim=0)  # [C, n]
    positions = F.normalize(query.flatten(2)[0], dim=0)  # [C, h w]
    return F.relu(positions.T @ pixels).mean(1).view(1, 1, *query.shape[2:])


def similarities(
    query: Sequence[Tensor], support: Sequence[Tensor], positions: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    """A block of one episode: L layers [1, C, h, w] and [K, C, h, w], positions bool [K, h w], weight [L, 2, C].

    Gives [1, K, L, h, w] by similarity. Every shot has an object.
    """
    found = {"prototype": [], "cosine": []}
    for shot, chosen in enumerate(positions):
        rows = {name: [] for name in found}
        for q, s, w in zip(query, support, weight, strict=True):
            s = s[shot : shot + 1]
            rows["prototype"].append(prototype_similarity(q, chosen, s, w))
            rows["cosine"].append(cosine_similarity(q, chosen, s))
        for name, maps in rows.items():
            found[name].append(torch.cat(maps, 1))
    return {name: torch.stack(maps, 1) for name, maps in found.items()}


class Plain:
    """The forward pass of one episode."""

    def __init__(self, method: MSHNet):
        self.method = method
        for module in (method.trainable, method.non_trainable):
            module.to(memory_format=torch.contiguous_format)
            for layer in module.modules():
                if type(layer) is PointwiseConv2d:
                    layer.__class__ = nn.Conv2d

    @torch.no_grad()
    def forward(self, batch: EpisodeBatch) -> Tensor:
        """Logits [1, 2, h, w]."""
        query = self._layers(batch.query)
        shots = [self._layers(image[None]) for image in batch.support[0]]
        found = []
        for i, block in enumerate(BLOCKS):
            support = [torch.cat(layers) for layers in zip(*(shot[block] for shot in shots), strict=True)]
            positions = object_positions(batch.support_mask[0], query[block][0].shape[2:])
            weight = self.method.trainable["generative"][i].weight
            found.append(similarities(query[block], support, positions, weight))
        return self.method.trainable["pyramid"](found)[0]

    def _layers(self, image: Tensor) -> dict[int, list[Tensor]]:
        """The sums of the residual blocks before their ReLU, of one image, by block of the backbone, NCHW."""
        frozen = self.method.non_trainable
        x = frozen["backbone"].stage(0, frozen["normalize"](image))
        x = frozen["backbone"].stage(1, x)
        found = {}
        for block in BLOCKS:
            found[block] = []
            x = frozen["backbone"].stage(block, x, found[block])
        return found
