"""The options of the prototype baseline."""

from dataclasses import dataclass
from typing import Literal

from fss.errors import ConfigError, at_least
from fss.nn.backbones import BackboneName, Stem


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig:
    """Masked average pooling and cosine on a frozen backbone: what a method that learns has to beat."""

    name: Literal["prototype"] = "prototype"
    """The method."""
    size: int = 473
    """Side of evaluated images unless another is asked for, pixels: 8k + 1."""
    backbone: BackboneName = "resnet50"
    """The frozen feature extractor; ResNets are dilated to output stride 8."""
    stem: Stem = "torchvision"
    """How a ResNet begins and where it strides; published few-shot results use 'deep'."""
    backbone_weights: str | None = None
    """File of the backbone's weights, of its `stem`; none: random weights."""
    features: Literal["block3", "block2+3", "block4"] = "block4"
    """The maps that are compared; on photographs, with ImageNet weights, block 4 did best (docs/benchmarks.md)."""
    scale: float = 20.0
    """Logits are this times the cosine (PANet's)."""

    def __post_init__(self) -> None:
        at_least("method", self, size=33)
        if self.size % 8 != 1:
            near = round((self.size - 1) / 8) * 8 + 1
            raise ConfigError(f"method.size is {self.size}: give a multiple of 8 plus 1, such as {near}")
        if not self.scale > 0:
            raise ConfigError(f"method.scale is {self.scale}: give a number above 0, such as 20")
