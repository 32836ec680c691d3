"""The baseline without learning: a query position belongs to the nearer of two prototypes, class or background.

Prototypes are masked averages of frozen features and nearness is the cosine, as PANet (Wang et al. 2019, section 3.3)
predicts; there the features are trained.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch
from fss.methods.base import Features, Peers, Report
from fss.methods.episodic import Episodic, imagenet_backbone
from fss.methods.prototype_config import PrototypeConfig
from fss.nn.fem import middle_feature
from fss.nn.region import masked_average, resize, small_mask


class Prototype(Episodic):
    """See the module. `trained` is empty, `replica` has the frozen backbone."""

    Config = PrototypeConfig
    learns = False

    def __init__(self, config: PrototypeConfig):
        """Raises WeightsError where the file of weights does not fit."""
        self.config = config
        self.trained = nn.ModuleDict()
        self.replica = nn.ModuleDict({"backbone": imagenet_backbone(config)})

    def loss(self, batch: EpisodeBatch, peers: Peers, step: int) -> tuple[Tensor, Report]:
        raise TypeError("the prototype baseline learns nothing: evaluate it with launch/evaluate.py")

    @torch.no_grad()
    def encode(self, image: Tensor) -> Features:
        """At 473 px with a ResNet-50 15 MB, with block 4 29 MB."""
        backbone = self.replica["backbone"]
        block2, block3 = backbone.middle(image)
        match self.config.features:
            case "block3":
                features = block3
            case "block2+3":
                features = middle_feature(block2, block3)
            case "block4":
                features = backbone.block4(block3)
        return {"size": torch.tensor([image.shape[-1]]), "features": features}  # [1, C, h, w]

    @torch.no_grad()
    def describe(self, features: Features, mask: Tensor) -> Features:
        size = features["features"].shape[2:]
        sides = [small_mask(side, size) for side in (mask == 0, mask == 1)]  # unknown pixels belong to neither
        prototypes = [masked_average(features["features"], side) for side in sides]  # background, class: [1, C] each
        return {"prototypes": torch.stack(prototypes, 1)}

    @torch.no_grad()
    def predict(self, query: Features, supports: list[Features]) -> Tensor:
        prototypes = torch.cat([s["prototypes"] for s in supports]).mean(0)  # [2, C], background first
        pixels = F.normalize(query["features"].float(), dim=1)  # [1, C, h, w]
        logits = self.config.scale * F.conv2d(pixels, F.normalize(prototypes, dim=1)[:, :, None, None])
        return resize(logits, (int(query["size"]),) * 2)

    def cautions(self, images_seen: int) -> list[str]:
        return self.config.untrained()
