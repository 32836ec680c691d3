"""Frozen feature extractors of few-shot methods: ResNets with three stems, and VGG-16.

A backbone gives the maps after blocks 2, 3 and 4. Its parameters never have a gradient, and they keep torchvision's
names, so that a state dict from `fss.nn.weights` loads as it is.
"""

import abc
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import cfgs, make_layers

from fss.errors import ConfigError
from fss.nn.resnet import LAYOUTS, speed_up_pointwise

Stem = Literal["torchvision", "deep", "original"]
"""How a ResNet begins and where it strides. 'torchvision': a 7x7 convolution, stride in the 3x3 convolution of a block.
'deep': three 3x3 convolutions for the 7x7 one, 128 channels wide, as few-shot papers use it (semseg's `_v2` weights).
'original': 7x7, and the stride of a bottleneck in its first 1x1 convolution, as the weights of He et al. 2016 have it;
a ResNet-18 has no bottlenecks, so there 'original' is 'torchvision'."""

BatchNorm = Literal["frozen", "reference"]
"""'frozen': batch norm uses its running statistics, always. 'reference': in training mode it uses the statistics of the
batch and lets the running ones drift, as the published code of PFENet and QGNet does (unlike BAM's)."""


class Blocks(NamedTuple):
    """Maps of an image, float [B, C, h, w] each."""

    block2: Tensor
    block3: Tensor
    block4: Tensor


class Layers(NamedTuple):
    """An image seen layer by layer."""

    blocks: Blocks
    inner: dict[int, list[Tensor]]
    """Block number (2, 3, 4) -> what its layers give before their ReLU, [B, C, h, w] each: of a ResNet the sums
    that end its residual blocks, of a VGG its convolutions' outputs."""


class Backbone(nn.Module, abc.ABC):
    """What a few-shot method asks of a frozen network. Images are standardised RGB, float [B, 3, H, W].

    Square images of side 8k + 1 give dilated ResNets maps of side k + 1 at all three blocks.
    """

    channels: dict[int, int]
    """Block number (2, 3, 4) -> channels of its map."""
    bn: BatchNorm

    @abc.abstractmethod
    def stage(self, number: int, x: Tensor, inner: list[Tensor] | None = None) -> Tensor:
        """Stage 0 takes the image, stage n the map of stage n - 1; stages 2, 3 and 4 end in the blocks of that name.

        What `Layers.inner` has of stages 1 to 4 is appended to `inner`.
        """

    @torch.no_grad()
    def blocks_2_3(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks 2 and 3 of an image, for methods that run `block4` on something else than all of block 3."""
        x = image.contiguous(memory_format=torch.channels_last)
        block2 = self.stage(2, self.stage(1, self.stage(0, x)))
        return block2, self.stage(3, block2)

    @torch.no_grad()
    def block4(self, block3: Tensor) -> Tensor:
        """Block 4 of a block-3 map, [B, C3, h, w] -> [B, C4, h, w]; PFENet gives it supports with a masked block 3."""
        return self.stage(4, block3)

    def blocks(self, image: Tensor) -> Blocks:
        """All three maps of an image."""
        block2, block3 = self.blocks_2_3(image)
        return Blocks(block2, block3, self.block4(block3))

    @torch.no_grad()
    def layers(self, image: Tensor) -> Layers:
        """The three maps of an image, and what the layers of their blocks gave on the way."""
        x = image.contiguous(memory_format=torch.channels_last)
        x = self.stage(1, self.stage(0, x))
        inner: dict[int, list[Tensor]] = {2: [], 3: [], 4: []}
        maps = [x := self.stage(number, x, found) for number, found in inner.items()]
        return Layers(Blocks(*maps), inner)

    forward = blocks  # a call must not reach the classifier that torchvision's networks end in

    def train(self, mode: bool = True) -> Self:
        """As nn.Module, but with `bn` 'frozen' the backbone stays in evaluation mode."""
        return super().train(mode and self.bn == "reference")

    def _freeze(self, bn: BatchNorm) -> None:
        self.bn = bn
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)


class ResNetBackbone(Backbone, ResNet):
    """torchvision's ResNet without its classifier, with `stem`, and with output stride 8 where `dilated`."""

    def __init__(self, name: str, *, stem: Stem, dilated: bool, bn: BatchNorm):
        block, depths = LAYOUTS[name]
        super().__init__(block, depths, num_classes=1)
        del self.avgpool, self.fc
        self.deep = stem == "deep"
        if self.deep:
            self._deepen(block, depths[0])
        if stem == "original":
            for layer in (self.layer2, self.layer3, self.layer4):
                first = layer[0]
                first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
        if dilated:
            _dilate(self.layer3, 2)
            _dilate(self.layer4, 4)
        speed_up_pointwise(self)
        self.channels = {number: width * block.expansion for number, width in ((2, 128), (3, 256), (4, 512))}
        self._freeze(bn)

    def _deepen(self, block: type[nn.Module], depth: int) -> None:
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(128)
        self.inplanes = 128
        self.layer1 = self._make_layer(block, 64, depth)
        for conv in (self.conv1, self.conv2, self.conv3, *self.layer1.modules()):
            if isinstance(conv, nn.Conv2d):
                _draw(conv)

    def stage(self, number: int, x: Tensor, inner: list[Tensor] | None = None) -> Tensor:
        if number == 0:
            x = self.relu(self.bn1(self.conv1(x)))  # [B, 64, H/2, W/2]
            if self.deep:
                x = self.relu(self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x))))))  # [B, 128, H/2, W/2]
            return self.maxpool(x)
        for block in getattr(self, f"layer{number}"):
            if inner is None:
                x = block(x)
            else:
                inner.append(_residual_sum(block, x))
                x = inner[-1].relu()
        return x


def _residual_sum(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """What torchvision's `block` computes of x, without the ReLU that ends it."""
    out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    if isinstance(block, Bottleneck):
        out = block.bn3(block.conv3(block.relu(out)))
    return out.add_(x if block.downsample is None else block.downsample(x))


def _draw(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's constructors


def _dilate(layer: nn.Sequential, rate: int) -> None:
    """Take the stride out of a layer in place and dilate its 3x3 convolutions instead.

    Bottlenecks follow the few-shot references: every 3x3 convolution has `rate`. In a BasicBlock the convolution that
    used to stride reads the finer map of the layer before and keeps its rate, so that the layer's output at every other
    position is the strided layer's.
    """
    basic = isinstance(layer[0], BasicBlock)
    for conv in layer.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.kernel_size == (3, 3):
            own = rate // 2 if basic and conv.stride == (2, 2) else rate
            conv.dilation = conv.padding = (own, own)
        conv.stride = (1, 1)


class VGGBackbone(Backbone):
    """torchvision's VGG-16 up to the last convolution, with or without batch norm; pools round up.

    Stage n ends with pool n + 1, stage 4 before the last pool: at 473 px block 2 is 60 x 60, blocks 3 and 4 are 30 x 30
    (PFENet's slices). It is never dilated.
    """

    def __init__(self, name: str, *, stem: Stem, dilated: bool, bn: BatchNorm):
        if stem != "torchvision":
            raise ConfigError(f"stem is {stem} but the backbone is {name}: leave stem out, it is for ResNets")
        super().__init__()
        self.features = make_layers(cfgs["D"], batch_norm=name == "vgg16_bn")[:-1]
        ends = [0]
        for i, layer in enumerate(self.features):
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
                ends.append(i + 1)
            elif isinstance(layer, nn.Conv2d):
                _draw(layer)
                nn.init.zeros_(layer.bias)
        self.ends = [*ends, len(self.features)]  # stage n is features[ends[n]:ends[n + 1]]
        self.channels = {2: 256, 3: 512, 4: 512}
        self._freeze(bn)

    def stage(self, number: int, x: Tensor, inner: list[Tensor] | None = None) -> Tensor:
        for layer in self.features[self.ends[number] : self.ends[number + 1]]:
            x = layer(x)
            if inner is not None and isinstance(layer, nn.Conv2d):
                inner.append(x.clone())  # the ReLU behind it works in place
        return x


BACKBONES: dict[str, type[Backbone]] = {
    "resnet18": ResNetBackbone,
    "resnet50": ResNetBackbone,
    "resnet101": ResNetBackbone,
    "vgg16": VGGBackbone,
    "vgg16_bn": VGGBackbone,
}
BackboneName = Literal["resnet18", "resnet50", "resnet101", "vgg16", "vgg16_bn"]


def make_backbone(
    name: BackboneName, *, stem: Stem = "torchvision", dilated: bool = True, bn: BatchNorm = "frozen"
) -> Backbone:
    """A frozen backbone with random weights (kaiming, as torchvision draws them); a VGG is not `dilated` either way.

    Load weights with `backbone.load_state_dict(load_backbone(path, name, stem))` (fss.nn.weights).
    Raises ConfigError for a VGG with a ResNet's stem.
    """
    return BACKBONES[name](name, stem=stem, dilated=dilated, bn=bn)
