"""Atrous spatial pyramid pooling as in BAM (Lang et al. 2022): five parallel branches, biases, no batch norm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ASPP(nn.Module):
    """The mean over the image, a 1x1 convolution, and a 3x3 one for each dilation; each keeps the number of channels.

    DeepLab's ASPP has batch norm and a final reduction; BAM's has neither.
    """

    def __init__(self, channels: int, dilations: Sequence[int] = (6, 12, 18)):
        super().__init__()
        self.whole = nn.Conv2d(channels, channels, 1)
        self.point = nn.Conv2d(channels, channels, 1)
        self.atrous = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in dilations)
        for conv in (self.whole, self.point, *self.atrous):
            nn.init.kaiming_normal_(conv.weight)
        self.channels = (2 + len(dilations)) * channels
        """Channels of the output."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, (2 + len(dilations)) * C, h, w], in the order of the class's docstring."""
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])  # [B, C, h, w], a view
        return torch.cat([whole, self.point(x), *(conv(x) for conv in self.atrous)], dim=1).relu_()
