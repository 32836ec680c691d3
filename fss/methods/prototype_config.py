"""The options of the prototype baseline."""

from dataclasses import dataclass
from typing import Literal

from fss.errors import ConfigError
from fss.methods.episodic_config import ImageNetConfig


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig(ImageNetConfig):
    """Masked average pooling and cosine on a frozen backbone: what a method that learns has to beat."""

    name: Literal["prototype"] = "prototype"
    """The method."""
    features: Literal["block3", "block2+3", "block4"] = "block4"
    """The maps that are compared; on photographs, with ImageNet weights, block 4 did best (docs/benchmarks.md)."""
    scale: float = 20.0
    """Logits are this times the cosine (PANet's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ConfigError(f"method.scale is {self.scale}: give a number above 0, such as 20")
