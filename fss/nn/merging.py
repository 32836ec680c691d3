"""One segmentation from similarity maps of many layers, shots and scales (MSHNet, section 4.3 and Fig. 2, 3).

The paper does not give the widths; docs/mshnet.md derives those used here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fss.nn.region import resize


def conv(inputs: int, outputs: int, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """A "Conv block" of Fig. 3, [B, inputs, h, w] -> [B, outputs, h, w]: convolution, batch norm, ReLU."""
    padding = kernel // 2 * dilation
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """A residual block, [B, width, h, w] -> the same: x plus two 3x3 Conv blocks of x."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Branch(nn.Module):
    """One half of a symmetric merging block: Block-Conv over the layers, then Shot-Conv over the shots."""

    def __init__(self, layers: int, width: int, dilations: Sequence[int]):
        super().__init__()
        self.block = nn.Sequential(conv(layers, width, kernel=1), conv(width, width))
        self.shot = nn.ModuleList(conv(width, width, dilation=d) for d in dilations)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, K, L, h, w] -> [B, len(dilations) * width, h, w]; the mean over K makes the order of shots irrelevant."""
        merged = self.block(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]).mean(1)  # [B, width, h, w]
        return torch.cat([scale(merged) for scale in self.shot], 1)


class ChannelAttention(nn.Module):
    """A factor in 0..1 for every channel, from its mean and its maximum over the image (CBAM, Woo et al. 2018, 3.1)."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(8, channels // 16)  # CBAM's ratio
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(inplace=True), nn.Linear(hidden, channels, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))  # [B, C]
        return x * gate[:, :, None, None]


class SymmetricMerging(nn.Module):
    """A symmetric merging block: a branch of the same form for each similarity, then Merge-Conv over all channels."""

    def __init__(self, names: Sequence[str], layers: int, width: int, dilations: Sequence[int]):
        super().__init__()
        narrow = width // 4
        self.branches = nn.ModuleDict({name: Branch(layers, narrow, dilations) for name in names})
        channels = len(names) * len(dilations) * narrow
        self.attention = ChannelAttention(channels)
        self.merge = conv(channels, width)

    def forward(self, similarities: Mapping[str, Tensor]) -> Tensor:
        """Maps [B, K, L, h, w] by similarity -> [B, width, h, w]."""
        merged = [branch(similarities[name]) for name, branch in self.branches.items()]
        return self.merge(self.attention(torch.cat(merged, 1)))


class Level(nn.Module):
    """A level of the inverted pyramid: joins the features of the coarser level, refines them and segments its scale."""

    def __init__(self, width: int, coarser: int):
        super().__init__()
        self.join = conv(width + coarser, width)
        self.refine = nn.Sequential(*(Residual(width) for _ in range(3)))
        self.classify = nn.Conv2d(width, 2, 1)

    def forward(self, merged: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, width, h, w] and the coarser level's features -> features [B, width, h, w] and logits [B, 2, h, w]."""
        if coarser is not None:
            merged = torch.cat([merged, resize(coarser, merged.shape[2:])], 1)
        x = self.refine(self.join(merged))
        return x, self.classify(x)


class InvertedPyramid(nn.Module):
    """Similarities of all scales -> logits, from the coarse scale to the fine one.

    The width doubles when the side of a map halves, so every scale has the same cost. The final segmentation merges the
    logits of all levels with the finest features.
    """

    def __init__(self, names: Sequence[str], layers: Sequence[int], width: int, dilations: Sequence[int]):
        """layers: number in each block, fine to coarse; width: of the finest level, a multiple of 4."""
        super().__init__()
        widths = [width << i for i in range(len(layers))]
        self.merging = nn.ModuleList(
            SymmetricMerging(names, n, w, dilations) for n, w in zip(layers, widths, strict=True)
        )
        self.levels = nn.ModuleList(Level(w, coarser) for w, coarser in zip(widths, [*widths[1:], 0], strict=True))
        self.final = nn.Sequential(conv(width + 2 * len(widths), width, kernel=1), nn.Conv2d(width, 2, 1))

    def forward(self, similarities: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """Maps [B, K, L, h, w] by name, of each block, fine to coarse -> logits [B, 2, h, w], and each level's."""
        x: Tensor | None = None
        inner: list[Tensor] = []
        for merging, level, maps in zip(self.merging[::-1], self.levels[::-1], similarities[::-1], strict=True):
            x, logits = level(merging(maps), x)
            inner.insert(0, logits)  # [B, 2, h_i, w_i]
        assert x is not None, "there is no scale"
        segmented = [resize(logits, x.shape[2:]) for logits in inner]
        return self.final(torch.cat([x, *segmented], 1)), inner
