"""PSPNet (Zhao et al. 2017) without its auxiliary loss: BAM's base learner, which segments a fold's base classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.nn.backbones import BackboneName, Stem, make_backbone
from fss.nn.deterministic import interpolation
from fss.nn.norm import norm_relu
from fss.nn.ppm import PPM
from fss.nn.transfer import device_table

BINS = (1, 2, 3, 6)
WIDTH = 512  # channels before the classifier


class PSPNet(nn.Module):
    """A dilated backbone, frozen as in few-shot methods until `learn`, and a pyramid pooling head."""

    def __init__(self, backbone: BackboneName, stem: Stem, classes: int, dropout: float = 0.1):
        """classes: their number besides the background. Raises ConfigError if the backbone does not have the stem."""
        super().__init__()
        self.backbone = make_backbone(backbone, stem=stem)
        self.head = PSPHead(self.backbone.channels[4], classes, dropout)

    def learn(self) -> None:
        """Make the backbone trainable: gradients for its parameters, and batch norm in the mode of the module."""
        self.backbone.bn = "reference"
        self.backbone.requires_grad_(True)
        self.train(self.training)

    def forward(self, image: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] -> logits [B, 1 + classes, h, w], with a gradient to all that is trainable."""
        *_, block4 = self.backbone.steps(image)
        return self.head(block4.map)


class PSPHead(nn.Module):
    """Pyramid pooling, a 3x3 convolution, and a classifier of the background and `classes` more."""

    def __init__(self, channels: int, classes: int, dropout: float):
        super().__init__()
        self.ppm = PPM(channels, channels // len(BINS), BINS)
        self.reduce = nn.Conv2d(self.ppm.channels, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(WIDTH, 1 + classes, 1)

    def forward(self, block4: Tensor) -> Tensor:
        """[B, C4, h, w] -> logits [B, 1 + classes, h, w]; channel 0 is the background, the classes by ascending id."""
        return self.classify(self.dropout(norm_relu(self.norm, self._reduced(block4))))

    def _reduced(self, block4: Tensor) -> Tensor:
        """`self.reduce(self.ppm(block4))` [B, WIDTH, h, w], without the interpolated half of the pyramid's channels.

        They come from grids of up to 6 x 6 cells. Interpolation works on positions and the taps of a convolution on
        channels, so each tap is applied to the cells, and one product interpolates the results of all taps and grids to
        the positions that read them.
        """
        channels, size = block4.shape[1], block4.shape[2:]
        out = F.conv2d(block4, self.reduce.weight[:, :channels], padding=1)
        weights = self.reduce.weight[:, channels:].unflatten(1, (-1, self.ppm.width))  # [WIDTH, bins, C, 3, 3]
        weights = weights.permute(1, 0, 3, 4, 2).flatten(1, 3)  # [bins, WIDTH * 9, C]
        grids = [grid.flatten(2) for grid in self.ppm.grids(block4)]  # [B, C, cells] each
        taps = torch.cat([weight @ grid for weight, grid in zip(weights, grids, strict=True)], 2)
        taps = taps.unflatten(1, (WIDTH, 9)).flatten(2)  # [B, WIDTH, 9 * cells of all grids]
        return out + (taps @ _tap_table(size, self.ppm.bins, block4.device, taps.dtype)).unflatten(2, size)


@device_table
def _tap_table(size: Sequence[int], bins: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The weights of the taps of all cells at each position of a map, [9 * cells, height * width].

    Rows are ordered by tap and then by cell, of the grids of `bins` x `bins` cells one after the other.
    """
    grids = []
    for cells in bins:
        rows, columns = (_taps(cells, length, device) for length in size)  # [3, cells, height], [3, cells, width]
        grids.append(torch.einsum("yph,xqw->yxpqhw", rows, columns).flatten(4).flatten(2, 3).flatten(0, 1))
    return torch.cat(grids, 1).flatten(0, 1).to(dtype)


def _taps(cells: int, size: int, device: torch.device) -> Tensor:
    """The weights of interpolated cells at the three taps of a convolution padded with 0, float32 [3, cells, size].

    They are those of a line of cells, with align_corners, at the position before, at and after each of `size`
    positions.
    """
    padded = F.pad(interpolation(cells, size, device).mT, (1, 1))  # [cells, size + 2]
    return torch.stack([padded[:, tap : tap + size] for tap in range(3)])
