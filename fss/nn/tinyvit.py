"""TinyViT (Wu et al. 2022) as MobileSAM's image encoder (Zhang et al. 2023), in the names of its checkpoints.

Convolutions down to an eighth of the image, then three stages of attention in windows at an eighth and a sixteenth,
each block with a depthwise convolution between attention and MLP; SAM's neck reduces the result to 256 channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.nn.resnet import speed_up_pointwise


class Stage(NamedTuple):
    """One stage of blocks at one resolution."""

    width: int
    blocks: int
    heads: int
    window: int
    """Side of an attention window, cells."""


STEM = 64  # channels
STAGES = (Stage(128, 2, 4, 7), Stage(160, 6, 5, 14), Stage(320, 2, 10, 7))
NECK = 256
EXPANSION = 4


class ConvBN(nn.Sequential):
    """A convolution without bias and its batch norm."""

    def __init__(self, inward: int, outward: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inward, outward, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outward)


class MBConv(nn.Module):
    """MobileNet's inverted bottleneck with a shortcut: [B, C, H, W] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.conv1 = ConvBN(width, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class Downsample(nn.Module):
    """The step to the width of the next stage, with stride: [B, C, H, W] -> [B, C', H / stride, W / stride]."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(inward, outward)
        self.conv2 = ConvBN(outward, outward, 3, stride, groups=outward)
        self.conv3 = ConvBN(outward, outward)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Self-attention of the cells of each window, with a bias for each distance in x and in y added to the scores."""

    distance: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        ys, xs = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        dy, dx = ((a.flatten()[:, None] - a.flatten()).abs() for a in (ys, xs))  # [w², w²]
        self.register_buffer("distance", dy * window + dx, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[M, w², C] -> the same."""
        m, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(m, n, self.heads, 3, -1)  # q, k and v of a head are adjacent
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # [M, heads, w², d] each
        bias = self.attention_biases[:, self.distance].to(q.dtype)  # [heads, w², w²]
        return self.proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(m, n, -1))


class MLP(nn.Module):
    """Layer norm and two linear layers: [..., C] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Attention in windows, a depthwise convolution, an MLP: [B, C, H, W] -> the same."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.window = stage.window
        self.attn = WindowAttention(stage.width, stage.heads, stage.window)
        self.local_conv = ConvBN(stage.width, stage.width, 3, groups=stage.width)
        self.mlp = MLP(stage.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_conv(x + self._attend(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> the same. Windows at the edge are padded with zeros, which take part in the attention."""
        b, h, w, c = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))  # [B, H', W', C]
        rows, columns = x.shape[1] // side, x.shape[2] // side
        windows = x.view(b, rows, side, columns, side, c).transpose(2, 3).reshape(-1, side * side, c)
        x = self.attn(windows).view(b, rows, columns, side, side, c).transpose(2, 3)
        return x.reshape(b, rows * side, columns * side, c)[:, :h, :w]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2: [B, 3, S, S] -> [B, 64, S / 4, S / 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBN(3, STEM // 2, 3, 2), nn.GELU(), ConvBN(STEM // 2, STEM, 3, 2))

    def forward(self, image: Tensor) -> Tensor:
        return self.seq(image)


class Layer(nn.Module):
    """Blocks at one resolution, then the step to the next one, if any: [B, C, H, W] -> [B, C', H', W']."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class TinyViT(nn.Module):
    """Normalized images [B, 3, S, S] -> embeddings [B, 256, S / 16, S / 16]; S is a multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        layers: list[list[nn.Module]] = [[MBConv(STEM), MBConv(STEM)]]
        layers += [[Block(stage) for _ in range(stage.blocks)] for stage in STAGES]
        widths = [STEM, *(stage.width for stage in STAGES)]
        self.layers = nn.ModuleList()
        for i, (blocks, stride) in enumerate(zip(layers, (2, 2, 1, None), strict=True)):
            downsample = Downsample(widths[i], widths[i + 1], stride) if stride else nn.Identity()
            self.layers.append(Layer(blocks, downsample))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], NECK, 1, bias=False),
            ChannelNorm(NECK, eps=1e-6),
            nn.Conv2d(NECK, NECK, 3, padding=1, bias=False),
            ChannelNorm(NECK, eps=1e-6),
        )
        speed_up_pointwise(self)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)  # [B, 64, S/4, S/4]
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)
