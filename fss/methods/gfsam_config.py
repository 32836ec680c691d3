"""The options of GF-SAM."""

from dataclasses import dataclass
from typing import Literal

from fss.errors import ConfigError, at_least
from fss.nn.dino import PATCH, DinoName
from fss.nn.gfsam_rules import Rules
from fss.nn.sam import NATIVE, STRIDE, SamName


@dataclass(frozen=True, kw_only=True)
class GFSAMConfig(Rules):
    """GF-SAM: the defaults are the published code with the paper's networks."""

    name: Literal["gfsam"] = "gfsam"
    """The method."""
    size: int = 1024
    """Side of the images, pixels: what SAM sees. 1024, but for vit_t any multiple of 16."""
    dino: DinoName = "vitl14"
    """The DINOv2 whose features are compared."""
    dino_weights: str | None = None
    """File of its weights, official (.pth) or safetensors; none: random weights."""
    dino_size: int = 518
    """Side of the images that DINOv2 sees, pixels: a multiple of 14. 518 is what its positions were trained for."""
    antialias: bool = False
    """Whether pixels are averaged where the image shrinks to that size; the published figures were made without."""
    sam: SamName = "vit_h"
    """The SAM that makes the masks; vit_t is MobileSAM."""
    sam_weights: str | None = None
    """File of its weights, official (.pth) or safetensors; none: random weights."""
    features: Literal["dino", "sam"] = "dino"
    """Whose features are compared. 'sam', an ablation (A.5.1): the embeddings that SAM makes its masks of."""
    compile: bool = False
    """Have torch.compile work on the image encoders: minutes at first, then faster on a GPU."""

    @property
    def backbone(self) -> str:
        """What makes the features, as configs/published.yaml names it; the paper's main figures are with SAM vit_h."""
        if self.features == "sam":
            return f"SAM {self.sam}"
        return f"dinov2_{self.dino}" + ("" if self.sam == "vit_h" else f", SAM {self.sam}")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("method", self, size=4 * STRIDE, dino_size=PATCH)
        if self.sam != "vit_t" and self.size != NATIVE:
            raise ConfigError(f"method.size is {self.size} but SAM {self.sam} takes {NATIVE} alone: give that")
        if self.size % STRIDE:
            near = round(self.size / STRIDE) * STRIDE
            raise ConfigError(f"method.size is {self.size}: give a multiple of {STRIDE}, such as {near}")
        if self.dino_size % PATCH:
            near = round(self.dino_size / PATCH) * PATCH
            raise ConfigError(f"method.dino_size is {self.dino_size}: give a multiple of {PATCH}, such as {near}")
