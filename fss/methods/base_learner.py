"""BAM's base learner: a PSPNet that segments the base classes of a fold (Lang et al. 2022, section 4.1).

Its prediction in a query is a base class, not a novel object. The meta learner of BAM and MSANet uses its backbone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fss.collectives import Collectives
from fss.data.batch import LabelBatch, LabelSpec
from fss.errors import ConfigError, WeightsError, at_least
from fss.methods.base import LabelMethod, MethodConfig, Report, StepContext
from fss.nn.backbones import BackboneName, Stem, check_backbone, check_size
from fss.nn.exports import ExportHeader
from fss.nn.fem import segmentation_loss
from fss.nn.norm import Normalize, count_batches, synchronise
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
    """The feature extractor, which is trained, too; meta-training freezes it."""
    stem: Stem = "torchvision"
    """How a ResNet begins and where it strides; published few-shot results use 'deep'."""
    backbone_weights: str | None = None
    """File of the backbone's initial weights, for its `stem`; none: random weights."""
    dropout: float = 0.1
    """Share of channels dropped before the classifier."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone in multiples of optim.lr; BAM has 1 on PASCAL-5i and 10 on COCO-20i."""
    head_lr: float = 10.0
    """Learning rate of pyramid pooling and classifier in multiples of optim.lr."""

    def __post_init__(self) -> None:
        at_least("method", self, size=33, backbone_lr=0, head_lr=0)
        check_backbone("method.backbone", self.backbone)
        check_size("method.size", self.backbone, self.size)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"method.dropout is {self.dropout}: give a share from 0 to below 1, such as 0.1")


class BaseLearner(LabelMethod[BaseLearnerConfig]):
    """See the module. `trainable` has the PSPNet after `set_classes`."""

    Config = BaseLearnerConfig

    def __init__(self, config: BaseLearnerConfig) -> None:
        self.config = config
        self.classes: dict[int, str] = {}
        self._normalize = Normalize()
        self._built: PSPNet | None = None
        self.trainable = nn.ModuleDict()
        self.non_trainable = nn.ModuleDict({"normalize": self._normalize})

    @property
    def _network(self) -> PSPNet:
        assert self._built is not None, "set_classes comes first"
        return self._built

    @property
    def batch_spec(self) -> LabelSpec:
        return LabelSpec(size=self.config.size)

    def set_classes(self, classes: Mapping[int, str], collectives: Collectives) -> None:
        """Build the network for the classes, id -> name by ascending id; its batch statistics are those of all ranks.

        Raises ConfigError or WeightsError if the backbone's file is missing or does not fit.
        """
        c = self.config
        self.classes = dict(classes)
        network = PSPNet(c.backbone, c.stem, len(classes), c.dropout)
        if c.backbone_weights:
            network.backbone.load_state_dict(load_backbone(Path(c.backbone_weights), c.backbone, c.stem))
        network.learn()
        synchronise(network, lambda: collectives)
        self.trainable["network"] = self._built = network

    def loss(self, batch: LabelBatch, context: StepContext) -> tuple[Tensor, Report]:
        """Compute the cross-entropy, nats, over the known pixels of the batch of all ranks, each with the same weight.

        Raises ConfigError if the batch is too small for batch statistics.
        """
        if len(batch) * context.collectives.world_size < 2:
            raise ConfigError(
                "data.batch gives a micro-batch of 1 image, too few for the batch statistics of pyramid pooling: give "
                "at least 2 images for every micro-batch"
            )
        count_batches(self._network)
        logits = self.segment(self._normalize(batch.image))
        logits = resize(logits.float(), batch.labels.shape[1:])  # [B, 1 + n, S, S]
        known = batch.labels != IGNORE  # [B, S, S]
        with torch.no_grad():
            pixels = context.collectives.all_reduce(known.sum()).clamp(min=1) / context.collectives.world_size
            report = {}
            if context.logged:
                report["accuracy"] = (logits.argmax(1) == batch.labels).sum() / pixels  # no class is 255
        return segmentation_loss(logits, batch.labels, pixels), report

    def segment(self, image: Tensor) -> Tensor:
        return self._network(image)

    def param_groups(self) -> list[dict[str, Any]]:
        network = self._network
        return [
            {"params": list(network.backbone.parameters()), "lr_scale": self.config.backbone_lr},
            {"params": list(network.head.parameters()), "lr_scale": self.config.head_lr},
        ]

    def startup_messages(self, images: int, batch: int) -> list[str]:
        n = len(self.classes)
        return [
            f"loss starts near {math.log(1 + n):.2f} = ln {1 + n}: the background and {n} classes are equally likely"
        ]

    def chance_levels(self) -> dict[str, float]:
        return {"loss": math.log(1 + len(self.classes))}

    def caveats(self, images_seen: int) -> list[str]:
        if self.config.backbone_weights:
            return []
        return ["The backbone started from random weights: published base learners start from ImageNet's."]

    def export(self) -> tuple[dict[str, Tensor], ExportHeader]:
        """Return the tensors of the PSPNet and the header, with its classes; see `fss.nn.weights.load_base`."""
        return self._network.state_dict(), ExportHeader(
            format="pt",
            method=self.config.name,
            backbone=self.config.backbone,
            stem=self.config.stem,
            classes={str(class_id): name for class_id, name in self.classes.items()},
            config=asdict(self.config),
        )

    def init_from(self, path: Path) -> list[str]:
        """Start from another base learner; from one of other classes only its backbone and pyramid are loaded.

        Raises WeightsError if the file is not a base learner of this backbone and stem.
        """
        tensors, header = load_base(path)
        network = self._network
        if (header.backbone, header.stem) != (self.config.backbone, self.config.stem):
            raise WeightsError(
                f"run.init_from {path} is a {header.backbone} with stem {header.stem}, the method's is a "
                f"{self.config.backbone} with {self.config.stem}: set method.backbone and method.stem to the file's"
            )
        messages = [f"all weights start from {path}"]
        if header.class_names != self.classes:
            tensors = {name: t for name, t in tensors.items() if not name.startswith("head.classify.")}
            messages = [f"all weights but the classifier's start from {path}, which was trained on other classes"]
        network.load_state_dict(network.state_dict() | tensors)
        return messages
