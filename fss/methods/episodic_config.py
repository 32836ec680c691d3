"""The options that methods over a frozen backbone share."""

from dataclasses import dataclass

from fss.errors import at_least, feature_size
from fss.nn.backbones import BackboneName, Stem


@dataclass(frozen=True, kw_only=True)
class EpisodicConfig:
    """Which frozen backbone looks at the images, and at what size."""

    size: int = 473
    """Side of the training crops and, unless another is asked for, of evaluated images, pixels: 8k + 1."""
    backbone: BackboneName = "resnet50"
    """The frozen feature extractor."""
    stem: Stem = "torchvision"
    """How a ResNet begins and where it strides; published few-shot results use 'deep'."""

    def __post_init__(self) -> None:
        at_least("method", self, size=33)
        feature_size("method.size", self.size)


@dataclass(frozen=True, kw_only=True)
class ImageNetConfig(EpisodicConfig):
    """A backbone with weights of its own file, as ImageNet trained them."""

    backbone_weights: str | None = None
    """File of the backbone's weights, of its `stem`; none: random weights."""

    def untrained(self) -> list[str]:
        """The caution that belongs to a backbone without weights."""
        if self.backbone_weights:
            return []
        return ["The backbone has random weights: its scores show that the parts fit together and no more."]
