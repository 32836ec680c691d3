"""BAM's base learner: a PSPNet that segments the base classes of a fold (Lang et al. 2022, section 4.1).

What it finds in a query is no novel object. The meta learner of BAM and MSANet begins from its backbone.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from fss.data.batch import LabelBatch, LabelSpec
from fss.errors import ConfigError
from fss.methods.base import Method, Peers, Report
from fss.methods.base_learner_config import BaseLearnerConfig
from fss.nn.fem import IGNORE, segmentation_loss
from fss.nn.norm import Standardise, synchronise
from fss.nn.pspnet import PSPNet
from fss.nn.region import resize
from fss.nn.weights import load_backbone, load_base


class BaseLearner(Method):
    """See the module. `trained` has the PSPNet, once `teach` has named its classes."""

    Config = BaseLearnerConfig

    def __init__(self, config: BaseLearnerConfig):
        self.config = config
        self.classes: dict[int, str] = {}
        self.trained = nn.ModuleDict()
        self.replica = nn.ModuleDict({"standardise": Standardise()})

    @property
    def consumes(self) -> LabelSpec:
        return LabelSpec(size=self.config.size)

    def teach(self, classes: Mapping[int, str], peers: Peers) -> None:
        """Build the network; its batch statistics are taken over all peers.

        Raises ConfigError or WeightsError where the backbone's file is missing or does not fit.
        """
        c = self.config
        self.classes = dict(classes)
        network = PSPNet(c.backbone, c.stem, len(classes), c.dropout)
        if c.backbone_weights:
            network.backbone.load_state_dict(load_backbone(Path(c.backbone_weights), c.backbone, c.stem))
        network.learn()
        synchronise(network, lambda: peers)
        self.trained["network"] = network

    def loss(self, batch: LabelBatch, peers: Peers, step: int) -> tuple[Tensor, Report]:
        """Cross-entropy, nats, over the known pixels of the batch of all ranks, every one of which weighs the same.

        Raises ConfigError for a batch that is too small to have batch statistics.
        """
        if len(batch) * peers.world < 2:
            raise ConfigError(
                "data.batch gives a micro-batch of 1 image, and pyramid pooling of it nothing to take batch statistics "
                "over: give at least 2 images for every micro-batch"
            )
        logits = self.segment(self.replica["standardise"](batch.image))
        logits = resize(logits.float(), batch.labels.shape[1:])  # [B, 1 + n, S, S]
        known = batch.labels != IGNORE  # [B, S, S]
        with torch.no_grad():
            pixels = peers.sum(known.sum()).clamp(min=1) / peers.world
            report = {"accuracy": (logits.argmax(1) == batch.labels).sum() / pixels}  # no class is 255
        return segmentation_loss(logits, batch.labels, pixels), report

    def after_step(self, peers: Peers) -> None:
        pass  # batch statistics are those of all ranks already

    def segment(self, image: Tensor) -> Tensor:
        return self.trained["network"](image)

    def param_groups(self) -> list[dict]:
        network = self.trained["network"]
        return [
            {"params": list(network.backbone.parameters()), "lr_scale": self.config.backbone_lr},
            {"params": list(network.head.parameters()), "lr_scale": self.config.head_lr},
        ]

    def briefing(self, images: int, global_batch: int) -> list[str]:
        n = len(self.classes)
        return [f"loss starts near {math.log(1 + n):.2f} = ln {1 + n}: the background and {n} classes are alike"]

    def chance(self) -> dict[str, float]:
        return {"loss": math.log(1 + len(self.classes))}

    def cautions(self, images_seen: int) -> list[str]:
        if self.config.backbone_weights:
            return []
        return ["The backbone started from random weights: published base learners start from ImageNet's."]

    def export(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The PSPNet, and what its outputs stand for; see `fss.nn.weights.load_base`."""
        return self.trained["network"].state_dict(), {
            "format": "pt",
            "method": self.config.name,
            "backbone": self.config.backbone,
            "stem": self.config.stem,
            "classes": json.dumps(self.classes),
            "config": json.dumps(asdict(self.config), sort_keys=True),
        }

    def start_from(self, path: Path) -> list[str]:
        """Begin from another base learner; of other classes only its backbone and pyramid are taken over."""
        tensors, header = load_base(path)
        network = self.trained["network"]
        if (header["backbone"], header["stem"]) != (self.config.backbone, self.config.stem):
            raise ConfigError(
                f"run.start_from {path} is a {header['backbone']} with stem {header['stem']}, the method's is a "
                f"{self.config.backbone} with {self.config.stem}: set method.backbone and method.stem to the file's"
            )
        said = [f"all weights start from {path}"]
        if json.loads(header["classes"]) != {str(class_id): name for class_id, name in self.classes.items()}:
            tensors = {name: t for name, t in tensors.items() if not name.startswith("head.classify.")}
            said = [f"all weights but the classifier's start from {path}, which has learned other classes"]
        network.load_state_dict(network.state_dict() | tensors)
        return said
