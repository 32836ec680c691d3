"""The options of MSHNet."""

from dataclasses import dataclass, field
from typing import Literal

from fss.errors import ConfigError, at_least
from fss.methods.episodic_config import ImageNetConfig

Similarity = Literal["prototype", "cosine"]

WIDTH = 128  # gives the paper's numbers of parameters (docs/mshnet.md)


@dataclass(frozen=True, kw_only=True)
class MSHNetConfig(ImageNetConfig):
    """MSHNet: the defaults are the paper's network as docs/mshnet.md completes it (473 px, ResNet-50)."""

    name: Literal["mshnet"] = "mshnet"
    """The method."""
    backbone: Literal["resnet18", "resnet50", "resnet101"] = "resnet50"
    """The frozen feature extractor, not dilated; every residual block of its last three stages is a layer."""
    similarities: Literal["both", "cosine", "prototype"] = "both"
    """What relates a query to its supports (the paper's Table 4)."""
    width: int = WIDTH
    """Channels of the finest of three scales, a multiple of 4; each coarser one has twice as many."""
    dilations: list[int] = field(default_factory=lambda: [2, 4, 6])
    """Rates of the atrous convolutions that follow the shots, in positions of a map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("method", self, width=4)
        if self.width % 4:
            raise ConfigError(f"method.width is {self.width}: give a multiple of 4, such as {WIDTH}")
        if not self.dilations or min(self.dilations) < 1:
            raise ConfigError(f"method.dilations is {self.dilations}: give rates that are each at least 1")

    @property
    def names(self) -> tuple[Similarity, ...]:
        """The similarities, in the order in which their branches are merged."""
        return ("prototype", "cosine") if self.similarities == "both" else (self.similarities,)

    def far_from_paper(self) -> list[str]:
        """What keeps a run from the paper's figures."""
        said = self.untrained()
        if self.width != WIDTH:
            said.append(
                f"method.width is {self.width}: the network has {(self.width / WIDTH) ** 2:.2g} times the parameters "
                "of the paper's, not to be compared with its figures."
            )
        return said
