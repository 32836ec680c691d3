"""The baseline without training: a query position belongs to the nearer of two prototypes, class or background.

Prototypes are masked averages of frozen features and similarity is the cosine, as in PANet (Wang et al. 2019, section
3.3), whose features are trained.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch
from fss.errors import ConfigError
from fss.methods.base import Features, Prediction, Report, StepContext
from fss.methods.frozen_backbone import FrozenBackboneMethod, PretrainedBackboneConfig, pretrained_backbone
from fss.nn.exports import ExportHeader
from fss.nn.fem import concat_middle_blocks
from fss.nn.region import downsample_mask, masked_average, resize


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig(PretrainedBackboneConfig):
    """Masked average pooling and cosine on a frozen backbone: a baseline for trained methods."""

    name: Literal["prototype"] = "prototype"
    """The method."""
    features: Literal["block3", "block2+3", "block4"] = "block4"
    """The maps that are compared; on photographs, with ImageNet weights, block 4 did best (docs/benchmarks.md)."""
    scale: float = 20.0
    """Factor from cosine to logit (PANet's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ConfigError(f"method.scale is {self.scale}: give a number above 0, such as 20")


class Prototype(FrozenBackboneMethod[PrototypeConfig]):
    """See the module. `trainable` is empty, `non_trainable` has the frozen backbone."""

    Config = PrototypeConfig
    requires_training = False

    def __init__(self, config: PrototypeConfig, *, header: ExportHeader | None = None) -> None:
        self.config = config
        self._backbone = pretrained_backbone(config, header)
        self.trainable = nn.ModuleDict()
        self.non_trainable = nn.ModuleDict({"backbone": self._backbone})

    def loss(self, batch: EpisodeBatch, context: StepContext) -> tuple[Tensor, Report]:
        raise TypeError("the prototype baseline has nothing to train: evaluate it with launch/evaluate.py")

    @torch.no_grad()
    def encode(self, image: Tensor) -> Features:
        """Compute the compared map of an image [1, 3, S, S]: at 473 px with a ResNet-50 15 MB, with block 4 29 MB."""
        backbone = self._backbone
        block2, block3 = backbone.blocks_2_3(image)
        match self.config.features:
            case "block3":
                features = block3
            case "block2+3":
                features = concat_middle_blocks(block2, block3)
            case "block4":
                features = backbone.block4(block3)
        return {"size": torch.tensor([image.shape[-1]]), "features": features}  # [1, C, h, w]

    @torch.no_grad()
    def encode_support(self, features: Features, mask: Tensor) -> Features:
        size = features["features"].shape[2:]
        sides = [downsample_mask(side, size) for side in (mask == 0, mask == 1)]  # unknown pixels belong to neither
        prototypes = [masked_average(features["features"], side) for side in sides]  # background, class: [1, C] each
        return {"prototypes": torch.stack(prototypes, 1)}

    @torch.no_grad()
    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        prototypes = torch.cat([s["prototypes"] for s in supports]).mean(0)  # [2, C], background first
        pixels = F.normalize(query["features"].float(), dim=1)  # [1, C, h, w]
        logits = self.config.scale * F.conv2d(pixels, F.normalize(prototypes, dim=1)[:, :, None, None])
        return Prediction(logits=resize(logits, (int(query["size"]),) * 2))

    def caveats(self, images_seen: int) -> list[str]:
        return self.config.random_weights_caveat()
