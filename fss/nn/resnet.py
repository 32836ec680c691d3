"""ResNets of torchvision's layout with MoCo's projection head instead of the classifier."""

import abc
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fss.nn.norm import count_batches, count_together

HEAD = "fc."
"""Beginning of the names of the projection head's tensors, as in the official MoCo checkpoints."""


class Encoder(nn.Module, abc.ABC):
    """A network that a contrastive method trains: a trunk, and a projection head called `fc`."""

    fc: nn.Module

    @abc.abstractmethod
    def features(self, image: Tensor) -> Tensor:
        """Compute the trunk's last map [B, C, h, w] of float images [B, 3, H, W]."""

    @abc.abstractmethod
    def project(self, feature: Tensor) -> Tensor:
        """Compute embeddings [N, D], not normalized, of pooled features [N, C]."""


def mlp_head(width: int, dim: int) -> nn.Sequential:
    """MoCo v2's projection head (Chen et al. 2020): width -> width -> ReLU -> dim, no normalisation layer."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, dim))


class PointwiseConv2d(nn.Conv2d):
    """A Conv2d with a 1x1 kernel that runs in oneDNN on a CPU, forward and backward, [B, C, h, w] -> [B, D, h, w].

    On one thread, the usual number for a rank on a CPU, torch takes a slower path for 1x1 convolutions of fewer than 16
    images unless they are dilated, and dilating a single tap changes nothing. Under autocast, compiled, and on other
    devices this is a plain Conv2d.
    """

    def forward(self, image: Tensor) -> Tensor:
        on_cpu = image.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if not on_cpu or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(image)
        return F.conv2d(image, self.weight, self.bias, self.stride, self.padding, 2, self.groups)


def speed_up_pointwise(module: nn.Module) -> None:
    """Make every 1x1 convolution inside `module` a PointwiseConv2d in place; parameters do not change."""
    for layer in module.modules():
        if type(layer) is nn.Conv2d and layer.kernel_size == (1, 1):
            layer.__class__ = PointwiseConv2d


class ContrastiveResNet(ResNet, Encoder):
    """torchvision's ResNet (random weights) with an MLP head of `dim` outputs: [B, 3, H, W] -> [B, dim].

    The trunk keeps torchvision's names.
    """

    fc: nn.Sequential
    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, block: type[BasicBlock | Bottleneck], layers: list[int], dim: int):
        super().__init__(block, layers)
        self.fc = mlp_head(512 * block.expansion, dim)
        speed_up_pointwise(self)
        count_together(self)

    def features(self, image: Tensor) -> Tensor:
        """Compute the last map of float images, [B, 3, H, W] -> [B, C, H/32, W/32]."""
        count_batches(self)
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))  # [B, 64, H/4, W/4]
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [B, C, H/32, W/32]

    def project(self, feature: Tensor) -> Tensor:
        """Compute embeddings of pooled features, [N, C] -> [N, D], not normalized."""
        return self.fc(feature)

    def forward(self, image: Tensor) -> Tensor:
        return self.project(self.features(image).mean((2, 3)))  # [B, 3, H, W] -> [B, D]


LAYOUTS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}
"""Name -> the residual block and its number in each layer."""

ENCODERS: dict[str, Callable[[int], ContrastiveResNet]] = {
    name: partial(ContrastiveResNet, block, layers) for name, (block, layers) in LAYOUTS.items()
}
"""Name -> constructor; the argument is the length of the embedding."""
