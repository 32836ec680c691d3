"""PFENet's feature enrichment module and decoder (PFENet, section 3.3; QGNet's Fig. 2), for any number of maps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.nn.deterministic import adaptive_average, summed_cross_entropy
from fss.nn.region import IGNORE, resize
from fss.nn.resnet import PointwiseConv2d


def concat_middle_blocks(block2: Tensor, block3: Tensor) -> Tensor:
    """Concatenate blocks 3 and 2, [B, C, h, w] each, in this order; block 2 is resized to block 3 (VGG's is larger)."""
    return torch.cat([block3, resize(block2, block3.shape[2:])], 1)


def reduction(width: int, dim: int, dropout: float) -> nn.Sequential:
    """A layer that reduces blocks 2 and 3, [B, C, h, w] -> [B, D, h, w]: 1x1 convolution, ReLU, dropout."""
    return nn.Sequential(PointwiseConv2d(width, dim, 1, bias=False), nn.ReLU(inplace=True), nn.Dropout2d(dropout))


def head(width: int, dim: int, dropout: float) -> nn.Sequential:
    """A layer behind block 4 of a network, [B, C, h, w] -> [B, D, h, w], in QGNet's reference implementation.

    It makes the features of two networks comparable: 3x3 convolution, ReLU, dropout.
    """
    convolution = nn.Conv2d(width, dim, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.Dropout2d(dropout))


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution, [B, C, h, w] and [D, C, 1, 1] -> [B, D, h, w], channels innermost.

    It is computed as a product of matrices: on one CPU thread torch is slow in 1x1 convolutions of small batches.
    """
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)


def conv3x3(width: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps width and size, without bias."""
    return nn.Conv2d(width, width, 3, padding=1, bias=False)


def classifier(width: int, dropout: float) -> nn.Sequential:
    """A layer from features [B, D, h, w] to logits of background and class [B, 2, h, w]."""
    return nn.Sequential(conv3x3(width), nn.ReLU(inplace=True), nn.Dropout2d(dropout), nn.Conv2d(width, 2, 1))


def bin_size(scale: float, side: int) -> int:
    """The side of a pyramid level, cells. A scale above 1 is that number; up to 1 it is a share of the map's side."""
    return int(scale) if scale > 1 else max(1, int(side * scale))


class FeatureEnrichment(nn.Module):
    """Query features, a prototype and maps -> logits, through a pyramid of `bins` from fine to coarse.

    At every level the three sources are merged (inter-source enrichment), the level before is added (inter-scale
    interaction), and a classifier gives logits of its own for the auxiliary loss. A decoder joins the levels.
    There is no normalisation layer; only the layers that make logits have a bias.
    """

    def __init__(self, dim: int, maps: int, bins: Sequence[float], dropout: float = 0.1):
        super().__init__()
        self.dim = dim
        self.bins = tuple(bins)
        levels = range(len(self.bins))
        # Input channels in this order: query features (dim), prototype (dim), maps.
        self.merge = nn.ModuleList(nn.Conv2d(2 * dim + maps, dim, 1, bias=False) for _ in levels)
        self.interact = nn.ModuleList(nn.Conv2d(2 * dim, dim, 1, bias=False) for _ in levels[1:])
        self.refine = nn.ModuleList(self._two_convolutions(dim) for _ in levels)
        self.inner = nn.ModuleList(classifier(dim, dropout) for _ in levels)
        self.join = nn.Conv2d(len(self.bins) * dim, dim, 1, bias=False)
        self.smooth = self._two_convolutions(dim)
        self.classify = classifier(dim, dropout)

    @staticmethod
    def _two_convolutions(dim: int) -> nn.Sequential:
        return nn.Sequential(conv3x3(dim), nn.ReLU(inplace=True), conv3x3(dim), nn.ReLU(inplace=True))

    def forward(self, query: Tensor, prototype: Tensor, maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        """query [B, D, h, w], prototype [B, D], maps [B, M, h', w'] -> logits [B, 2, h, w] and those of each level."""
        size = query.shape[2:]
        joined: Tensor | None = None
        before: Tensor | None = None
        inner: list[Tensor] = []
        for level, (scale, join) in enumerate(zip(self.bins, self.join.weight.split(self.dim, dim=1), strict=True)):
            cells = (bin_size(scale, size[0]), bin_size(scale, size[1]))
            x = F.relu(self._merged(level, query, prototype, maps, cells))  # [B, D, *cells]
            if before is not None:
                both = torch.cat([x, resize(before, cells)], 1)
                x = x + F.relu(pointwise(both, _weight(self.interact[level - 1])))
            x = x + self.refine[level](x)
            inner.append(self.inner[level](x))  # [B, 2, *cells]
            # A 1x1 convolution and a resize commute: joining level by level avoids a concatenation at full size.
            part = resize(pointwise(x, join), size)
            joined = part if joined is None else joined + part
            before = resize(x, size)
        assert joined is not None, "the pyramid has no level"
        x = F.relu(joined)
        return self.classify(x + self.smooth(x)), inner

    def _merged(self, level: int, query: Tensor, prototype: Tensor, maps: Tensor, cells: tuple[int, int]) -> Tensor:
        """The merging convolution; the prototype is the same at every position, so its part is a bias."""
        of_query, of_prototype, of_maps = _weight(self.merge[level]).split([self.dim, self.dim, maps.shape[1]], dim=1)
        bias = F.linear(prototype, of_prototype.flatten(1))  # [B, D]
        sources = [adaptive_average(query, cells), resize(maps, cells).to(query.dtype)]
        return pointwise(torch.cat(sources, 1), torch.cat([of_query, of_maps], 1)) + bias[:, :, None, None]


def _weight(module: nn.Module) -> Tensor:
    """The weight of a convolution in a ModuleList, whose members have no narrower type than Module."""
    assert isinstance(module, nn.Conv2d)
    return module.weight


def segmentation_loss(logits: Tensor, mask: Tensor, pixels: Tensor | None = None) -> Tensor:
    """Mean cross-entropy, nats, of logits [B, 2, h, w] upsampled to the mask [B, S, S] of 0, 1 and IGNORE; a scalar.

    pixels: the number by which the sum is divided, above 0, a scalar; by default the number of known pixels in the
    mask. The loss is 0 if no pixel is known.
    """
    if pixels is None:
        pixels = (mask != IGNORE).sum().clamp(min=1)
    upsampled = resize(logits.float(), mask.shape[1:])  # [B, 2, S, S]
    return summed_cross_entropy(upsampled, mask.long(), IGNORE) / pixels


def inner_loss(inner: Sequence[Tensor], mask: Tensor, pixels: Tensor | None = None) -> Tensor:
    """The mean over pyramid levels, [B, 2, h, w] each, of their `segmentation_loss`; a scalar. mask: [B, S, S]."""
    return torch.stack([segmentation_loss(logits, mask, pixels) for logits in inner]).mean()
