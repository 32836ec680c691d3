"""ResNets as backbones (He et al. 2016), with three stems, dilated to an output stride of 8 as few-shot papers do."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fss.nn.backbones.convolutional import SIDES, ConvBackbone, draw, torchvision_names
from fss.nn.backbones.registry import BackboneEntry, BatchNorm, Stem
from fss.nn.norm import norm_relu
from fss.nn.resnet import LAYOUTS, speed_up_pointwise


class ResNetBackbone(ConvBackbone, ResNet):
    """torchvision's ResNet without its classifier, with `stem`, and with output stride 8 if `dilated`."""

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    relu: nn.ReLU
    maxpool: nn.MaxPool2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    _make_layer: Callable[..., nn.Sequential]

    def __init__(self, name: str, *, stem: Stem, dilated: bool, bn: BatchNorm):
        block, depths = LAYOUTS[name]
        super().__init__(block, depths, num_classes=1)
        del self.avgpool, self.fc
        self.deep = stem == "deep"
        if self.deep:
            self._deepen(block, depths[0])
        if stem == "original":
            for layer in (self.layer2, self.layer3, self.layer4):
                first: Bottleneck = layer[0]
                first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
        if dilated:
            _dilate(self.layer3, 2)
            _dilate(self.layer4, 4)
        speed_up_pointwise(self)
        self.channels = {number: width * block.expansion for number, width in ((2, 128), (3, 256), (4, 512))}
        self.freeze(bn)

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
                draw(conv)

    def stage(self, number: int, x: Tensor, inner: list[Tensor] | None = None) -> Tensor:
        if number == 0:
            x = norm_relu(self.bn1, self.conv1(x))  # [B, 64, H/2, W/2]
            if self.deep:
                x = norm_relu(self.bn2, self.conv2(x))
                x = norm_relu(self.bn3, self.conv3(x))  # [B, 128, H/2, W/2]
            return self.maxpool(x)
        for block in getattr(self, f"layer{number}"):
            x = _residual_sum(block, x)
            if inner is None:
                x = x.relu_()
            else:
                inner.append(x)
                x = x.relu()
        return x


def _residual_sum(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """The output of torchvision's `block` for x, without the ReLU that ends it."""
    out = block.conv2(norm_relu(block.bn1, block.conv1(x)))
    out = block.bn3(block.conv3(norm_relu(block.bn2, out))) if isinstance(block, Bottleneck) else block.bn2(out)
    return out.add_(x if block.downsample is None else block.downsample(x))


def _dilate(layer: nn.Sequential, rate: int) -> None:
    """Remove the stride of a layer in place and dilate its 3x3 convolutions instead.

    Bottlenecks follow the few-shot references: every 3x3 convolution has `rate`. In a BasicBlock the convolution that
    had the stride reads the finer map of the layer before and keeps that layer's rate, so that the output at every
    other position is that of the strided layer.
    """
    basic = isinstance(layer[0], BasicBlock)
    for conv in layer.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.kernel_size == (3, 3):
            own = rate // 2 if basic and conv.stride == (2, 2) else rate
            conv.dilation = conv.padding = (own, own)
        conv.stride = (1, 1)


RESNETS = {
    name: BackboneEntry(
        build=partial(ResNetBackbone, name),
        channels=(128 * block.expansion, 256 * block.expansion, 512 * block.expansion),
        strides=(8, 8, 8),
        sides=SIDES,
        stems=("torchvision", "deep", "original"),
        layers=(depths[1], depths[2], depths[3]),
        compared_layers=sum(depths[1:]),
        mask_stride=4,  # block 1
        own_names=torchvision_names,
        first_tensor="conv1.weight",
    )
    for name, (block, depths) in LAYOUTS.items()
}
