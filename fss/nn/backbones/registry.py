"""The contract of a frozen backbone, and the registry of those that exist.

A backbone gives the maps of three depths of a network, blocks 2, 3 and 4 in the words of ResNets. `BACKBONES` names the
backbones; each entry declares what a method must know before it builds one. To add a backbone, write its class (or a
row in the table of an existing family) and put its entry into `BACKBONES`, from inside or outside this package.
"""

import abc
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from fss.errors import ConfigError

BackboneName: TypeAlias = str
"""A key of `BACKBONES`."""

Stem = Literal["torchvision", "deep", "original"]
"""The first layers of a ResNet and the place of its strides. 'torchvision': a 7x7 convolution, stride in the 3x3
convolution of a bottleneck. 'deep': three 3x3 convolutions for the 7x7 one, 128 channels wide, as few-shot papers use
it (semseg's `_v2` weights). 'original': 7x7, and the stride of a bottleneck in its first 1x1 convolution, as in the
weights of He et al. 2016; a ResNet-18 has no bottlenecks, so there 'original' is 'torchvision'. Other families have
'torchvision' alone, which stands for their usual form."""

BatchNorm = Literal["frozen", "reference"]
"""'frozen': batch norm always uses its running statistics. 'reference': in training mode it uses the statistics of the
batch and lets the running ones drift, as the reference implementations of PFENet and QGNet do (unlike BAM's)."""


class Blocks(NamedTuple):
    """Maps of B images, float [B, C, h, w] each."""

    block2: Tensor
    block3: Tensor
    block4: Tensor


class Layers(NamedTuple):
    """The blocks of B images, and the outputs of their layers."""

    blocks: Blocks
    inner: dict[int, list[Tensor]]
    """Block number (2, 3, 4) -> outputs of its layers, [B, C, h, w] each: of a ResNet the sums that end its residual
    blocks, before their ReLU; of a VGG those of its convolutions, before their ReLU; of a ViT those of its transformer
    blocks."""


class Step(NamedTuple):
    """One block of B images, as `Backbone.steps` computes it."""

    number: int
    """2, 3 or 4."""
    map: Tensor
    """[B, C, h, w]."""
    inner: list[Tensor]
    """As in `Layers.inner`; empty unless asked for."""


class Backbone(nn.Module, abc.ABC):
    """A frozen network as few-shot methods use it. Images are normalized RGB, float [B, 3, H, W].

    The parameters have no gradient, and their names are those of the library that the network is from. The strides of
    the maps and the sizes of images that a backbone takes are declared by its entry in `BACKBONES`.
    """

    channels: dict[int, int]
    """Block number (2, 3, 4) -> channels of its map."""
    bn: BatchNorm

    @abc.abstractmethod
    def steps(self, image: Tensor, inner: Collection[int] = ()) -> Iterator[Step]:
        """Compute blocks 2, 3 and 4 of images [B, 3, H, W] one by one, each when it is asked for.

        inner: numbers of the blocks whose layers are wanted, too. Gradients flow if parameters require them.
        """

    @abc.abstractmethod
    def _block4(self, block3: Tensor) -> Tensor:
        """Compute block 4 of a block-3 map, [B, C3, h, w] -> [B, C4, h', w']."""

    def compared_layers(self, image: Tensor) -> Iterator[Step]:
        """Compute as `steps`, with the layers that MSANet's multi-similarity compares: all of the three blocks.

        image: [B, 3, H, W].
        """
        return self.steps(image, (2, 3, 4))

    @torch.no_grad()
    def blocks_2_3(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute blocks 2 and 3 of images [B, 3, H, W], for methods that change block 3 before `block4`."""
        block2, block3 = islice(self.steps(image), 2)
        return block2.map, block3.map

    @torch.no_grad()
    def block4(self, block3: Tensor) -> Tensor:
        """Compute block 4 of a block-3 map, [B, C3, h, w] -> [B, C4, h', w']; PFENet passes supports masked before."""
        return self._block4(block3)

    @torch.no_grad()
    def blocks(self, image: Tensor) -> Blocks:
        """Compute all three maps of images [B, 3, H, W]."""
        return Blocks(*(step.map for step in self.steps(image)))

    @torch.no_grad()
    def layers(self, image: Tensor) -> Layers:
        """Compute the three maps of images [B, 3, H, W] and the outputs of the layers of these blocks."""
        steps = list(self.steps(image, (2, 3, 4)))
        return Layers(Blocks(*(step.map for step in steps)), {step.number: step.inner for step in steps})

    forward = blocks  # a call must not reach the classifier in which torchvision's networks end

    def train(self, mode: bool = True) -> Self:
        """Set the mode as nn.Module does, but with `bn` 'frozen' the backbone stays in evaluation mode."""
        return super().train(mode and self.bn == "reference")

    def freeze(self, bn: BatchNorm) -> None:
        """Turn gradients off and set the treatment of batch norm; the last act of a constructor."""
        self.bn = bn
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class SizeRule:
    """The sides of images that a backbone takes, pixels: multiples of `multiple` plus `plus`."""

    multiple: int
    plus: int = 0

    def fits(self, size: int) -> bool:
        """Return whether images of this side are taken."""
        return size % self.multiple == self.plus and size > self.plus

    def nearest(self, size: int) -> tuple[int, int]:
        """The two taken sides around `size`, the nearer one first."""
        below = max(1, (size - self.plus) // self.multiple) * self.multiple + self.plus
        first, second = sorted((below, below + self.multiple), key=lambda side: abs(side - size))
        return first, second

    def positions(self, size: int, stride: int) -> int:
        """The side of a map of this stride, of images of this side."""
        return (size - self.plus) // stride + self.plus

    def __str__(self) -> str:
        return f"a multiple of {self.multiple}" + (f" plus {self.plus}" if self.plus else "")


class Builder(Protocol):
    """Builds a frozen backbone with random weights."""

    def __call__(self, *, stem: Stem, dilated: bool, bn: BatchNorm) -> Backbone: ...


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """Facts about a backbone that are known before it is built."""

    build: Builder
    channels: tuple[int, int, int]
    """Of blocks 2, 3 and 4."""
    strides: tuple[int, int, int]
    """Pixels from one position of blocks 2, 3 and 4 to the next, `dilated`."""
    sides: SizeRule
    stems: tuple[Stem, ...] = ("torchvision",)
    layers: tuple[int, int, int]
    """The number of layers in blocks 2, 3 and 4, see `Layers.inner`."""
    compared_layers: int
    """The number of layers that multi-similarity compares (see fss.nn.multisim)."""
    mask_stride: int
    """Pixels from one position to the next of the map over which MSANet resizes masks (see fss.nn.multisim)."""
    own_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    """Gives the tensors of a published file of this network the names of the backbone, and drops heads."""
    first_tensor: str
    """The name, in the backbone, of a tensor that every file of its weights has."""


BACKBONES: dict[str, BackboneEntry] = {}
"""Name -> entry. `fss.nn.backbones` fills it; add entries to register others."""


def make_backbone(
    name: BackboneName, *, stem: Stem = "torchvision", dilated: bool = True, bn: BatchNorm = "frozen"
) -> Backbone:
    """Build a frozen backbone with random weights; only ResNets can be `dilated`, others are the same either way.

    Load weights with `backbone.load_state_dict(load_backbone(path, name, stem))` (fss.nn.weights).
    Raises ConfigError if the name is not registered, or if the backbone does not have this stem.
    """
    check_backbone("backbone", name)
    check_stem("stem", name, stem)
    return BACKBONES[name].build(stem=stem, dilated=dilated, bn=bn)


def check_backbone(key: str, name: str) -> None:
    """Raise ConfigError unless `name`, the value of the option `key`, is a registered backbone."""
    if name not in BACKBONES:
        raise ConfigError(f"{key} is {name}: give one of {', '.join(BACKBONES)}")


def check_stem(key: str, name: BackboneName, stem: Stem) -> None:
    """Raise ConfigError unless the backbone `name` has the stem that is the value of the option `key`."""
    stems = BACKBONES[name].stems
    if stem in stems:
        return
    if len(stems) == 1:
        raise ConfigError(f"{key} is {stem} but the backbone is {name}: leave stem out, it is for ResNets")
    raise ConfigError(f"{key} is {stem} but the backbone is {name}: give one of {', '.join(stems)}")


def check_size(key: str, name: BackboneName, size: int) -> None:
    """Raise ConfigError unless the backbone `name` takes images of side `size` (pixels), the value of `key`."""
    sides = BACKBONES[name].sides
    if not sides.fits(size):
        near, next_near = sides.nearest(size)
        raise ConfigError(f"{key} is {size}: give {sides}, such as {near} or {next_near}, for the backbone {name}")
