"""Pyramid pooling, the context module of PSPNet (Zhao et al. 2017) and of BAM's base learner."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fss.nn.deterministic import adaptive_average
from fss.nn.norm import norm_relu
from fss.nn.region import resize


class PPM(nn.Module):
    """A map and its averages over grids of `bins` x `bins` cells, each reduced to `width` channels and scaled back."""

    def __init__(self, channels: int, width: int, bins: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.bins = tuple(bins)
        self.width = width
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            for _ in self.bins
        )
        self.channels = channels + len(self.bins) * width
        """Channels of the output."""

    def grids(self, x: Tensor) -> list[Tensor]:
        """Compute the reduced averages of a map [B, C, h, w] before they are scaled back: [B, width, bin, bin] each."""
        out = []
        for bin, reduce in zip(self.bins, self.reduce, strict=True):
            conv, norm, _ = cast(nn.Sequential, reduce)
            out.append(norm_relu(norm, conv(adaptive_average(x, (bin, bin)))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C + len(bins) * width, h, w], the input's channels first."""
        size = x.shape[2:]
        scaled = [resize(grid, size) for grid in self.grids(x)]
        return torch.cat([x, *scaled], dim=1)
