"""BAM's base learner: a PSPNet that segments the base classes of a fold (Lang et al. 2022, section 4.1).

What it finds in a query is no novel object. The meta learner of BAM and MSANet begins from its backbone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fss.collectives import Collectives
from fss.data.batch import LabelBatch, LabelSpec
from fss.errors import ConfigError, at_least
from fss.methods.base import LabelMethod, MethodConfig, Report, StepContext
from fss.nn.backbones import BackboneName, Stem, check_backbone, check_size
from fss.nn.exports import ExportHeader
from fss.nn.fem import segmentation_loss
from fss.nn.norm import Normalize, synchronise
from fss.nn.pspnet import PSPNet
from fss.nn.region import IGNORE, resize
from fss.nn.weights import load_backbone, load_base


@dataclass(frozen=True, kw_only=True)
class BaseLearnerConfig(MethodConfig):
    """Training of the base learner; the defaults are BAM's recipe for PASCAL-5i."""

    name: Literal["base"] = "base"
    """The method."""
    size: int = 417
    """Side of the training crops and of validated images, pixels: 8k + 1 for ResNets and VGGs, a multiple of the patch
    for ViTs."""
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
        check_backbone("method.backbone", self.backbone)
        check_size("method.size", self.backbone, self.size)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"method.dropout is {self.dropout}: give a share from 0 to below 1, such as 0.1")


class BaseLearner(LabelMethod[BaseLearnerConfig]):
    """See the module. `trainable` has the PSPNet, once `set_classes` has named its classes."""

    Config = BaseLearnerConfig

    def __init__(self, config: BaseLearnerConfig):
        self.config = config
        self.classes: dict[int, str] = {}
        self.trainable = nn.ModuleDict()
        self.non_trainable = nn.ModuleDict({"standardise": Normalize()})

    @property
    def batch_spec(self) -> LabelSpec:
        return LabelSpec(size=self.config.size)

    def set_classes(self, classes: Mapping[int, str], collectives: Collectives) -> None:
        """Build the network; its batch statistics are taken over all peers.

        Raises ConfigError or WeightsError where the backbone's file is missing or does not fit.
        """
        c = self.config
        self.classes = dict(classes)
        network = PSPNet(c.backbone, c.stem, len(classes), c.dropout)
        if c.backbone_weights:
            network.backbone.load_state_dict(load_backbone(Path(c.backbone_weights), c.backbone, c.stem))
        network.learn()
        synchronise(network, lambda: collectives)
        self.trainable["network"] = network

    def loss(self, batch: LabelBatch, context: StepContext) -> tuple[Tensor, Report]:
        """Cross-entropy, nats, over the known pixels of the batch of all ranks, every one of which weighs the same.

        Raises ConfigError for a batch that is too small to have batch statistics.
        """
        if len(batch) * context.collectives.world_size < 2:
            raise ConfigError(
                "data.batch gives a micro-batch of 1 image, and pyramid pooling of it nothing to take batch statistics "
                "over: give at least 2 images for every micro-batch"
            )
        logits = self.segment(self.non_trainable["standardise"](batch.image))
        logits = resize(logits.float(), batch.labels.shape[1:])  # [B, 1 + n, S, S]
        known = batch.labels != IGNORE  # [B, S, S]
        with torch.no_grad():
            pixels = context.collectives.all_reduce(known.sum()).clamp(min=1) / context.collectives.world_size
            report = {"accuracy": (logits.argmax(1) == batch.labels).sum() / pixels}  # no class is 255
        return segmentation_loss(logits, batch.labels, pixels), report

    def segment(self, image: Tensor) -> Tensor:
        return self.trainable["network"](image)

    def param_groups(self) -> list[dict]:
        network = self.trainable["network"]
        return [
            {"params": list(network.backbone.parameters()), "lr_scale": self.config.backbone_lr},
            {"params": list(network.head.parameters()), "lr_scale": self.config.head_lr},
        ]

    def startup_messages(self, images: int, batch: int) -> list[str]:
        n = len(self.classes)
        return [f"loss starts near {math.log(1 + n):.2f} = ln {1 + n}: the background and {n} classes are alike"]

    def chance_levels(self) -> dict[str, float]:
        return {"loss": math.log(1 + len(self.classes))}

    def caveats(self, images_seen: int) -> list[str]:
        if self.config.backbone_weights:
            return []
        return ["The backbone started from random weights: published base learners start from ImageNet's."]

    def export(self) -> tuple[dict[str, Tensor], ExportHeader]:
        """The PSPNet, and what its outputs stand for; see `fss.nn.weights.load_base`."""
        return self.trainable["network"].state_dict(), ExportHeader(
            format="pt",
            method=self.config.name,
            backbone=self.config.backbone,
            stem=self.config.stem,
            classes={str(class_id): name for class_id, name in self.classes.items()},
            config=asdict(self.config),
        )

    def init_from(self, path: Path) -> list[str]:
        """Begin from another base learner; of other classes only its backbone and pyramid are taken over."""
        tensors, header = load_base(path)
        network = self.trainable["network"]
        if (header.backbone, header.stem) != (self.config.backbone, self.config.stem):
            raise ConfigError(
                f"run.init_from {path} is a {header.backbone} with stem {header.stem}, the method's is a "
                f"{self.config.backbone} with {self.config.stem}: set method.backbone and method.stem to the file's"
            )
        said = [f"all weights start from {path}"]
        if header.class_names != self.classes:
            tensors = {name: t for name, t in tensors.items() if not name.startswith("head.classify.")}
            said = [f"all weights but the classifier's start from {path}, which has learned other classes"]
        network.load_state_dict(network.state_dict() | tensors)
        return said
