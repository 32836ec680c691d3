"""The options of BAM's base learner."""

from dataclasses import dataclass
from typing import Literal

from fss.errors import ConfigError, at_least, feature_size
from fss.nn.backbones import BackboneName, Stem


@dataclass(frozen=True, kw_only=True)
class BaseLearnerConfig:
    """Training of the base learner; the defaults are BAM's recipe for PASCAL-5i."""

    name: Literal["base"] = "base"
    """The method."""
    size: int = 417
    """Side of the training crops and of validated images, pixels: 8k + 1."""
    backbone: BackboneName = "resnet50"
    """The feature extractor, which learns too; meta-training goes on with it."""
    stem: Stem = "torchvision"
    """How a ResNet begins and where it strides; published few-shot results use 'deep'."""
    backbone_weights: str | None = None
    """File of the backbone's first weights, of its `stem`; none: random weights."""
    dropout: float = 0.1
    """Share of channels that is dropped before the classifier."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone, in multiples of optim.lr; BAM has 1 on PASCAL-5i and 10 on COCO-20i."""
    head_lr: float = 10.0
    """Learning rate of pyramid pooling and classifier, in multiples of optim.lr."""

    def __post_init__(self) -> None:
        at_least("method", self, size=33, backbone_lr=0, head_lr=0)
        feature_size("method.size", self.size)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"method.dropout is {self.dropout}: give a share from 0 to below 1, such as 0.1")
