"""A few-shot method small enough to follow by hand: a pixel is the class if its colour is nearer to the supports'."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fss.data.batch import EpisodeSpec
from fss.methods.base import EpisodeMethod, EpisodeMethodConfig, Features, Prediction, StepContext


@dataclass(frozen=True, kw_only=True)
class ColourConfig(EpisodeMethodConfig):
    name: Literal["colour"] = "colour"
    size: int = 33


class Colour(EpisodeMethod[ColourConfig]):
    Config: ClassVar[type] = ColourConfig
    requires_training: ClassVar[bool] = False

    def __init__(self, config: ColourConfig | None = None) -> None:
        self.config = config or ColourConfig()
        self.trainable = nn.Module()
        self.non_trainable = nn.Sequential(nn.Dropout(0.5))  # would make every score another, left in training mode
        self.non_trainable.register_buffer("weight", torch.tensor([1.0, 0.7, 0.4]).view(1, 3, 1, 1))
        self.encoded: list[Tensor] = []

    @property
    def batch_spec(self) -> EpisodeSpec:
        return EpisodeSpec(size=self.config.size)

    def loss(self, batch, context: StepContext):
        raise TypeError("a colour has nothing to train")

    def encode(self, image: Tensor) -> Features:
        assert image.shape == (1, 3, self.config.size, self.config.size)
        self.encoded.append(image)
        return {"colour": self.non_trainable(image * self.non_trainable.weight)}

    def encode_support(self, features: Features, mask: Tensor) -> Features:
        colour = features["colour"]
        return {name: _mean(colour, mask == label) for name, label in (("other", 0), ("class", 1))}

    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        distances = [
            (query["colour"] - torch.stack([s[name] for s in supports]).mean(0)).square().sum(1)
            for name in ("other", "class")
        ]
        return Prediction(logits=-torch.stack(distances, dim=1))  # [1, 2, S, S]


def _mean(colour: Tensor, where: Tensor) -> Tensor:
    return (colour * where[:, None]).sum((2, 3), keepdim=True) / where.sum().clamp(min=1)  # [1, 3, 1, 1]
