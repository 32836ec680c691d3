"""GF-SAM: points and SAM's masks in a graph, without training (Zhang et al., NeurIPS 2024).

DINOv2's features select the patches of a query that are similar to the object in the supports (section 4.1). SAM
segments each of them. The coverage of points by masks makes a graph, whose clusters decide which masks are merged (4.2
and 4.3). fss.nn.alignment and fss.nn.pointgraph contain these decisions.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch, EpisodeSpec
from fss.errors import ConfigError, at_least
from fss.methods.base import EpisodeMethod, EpisodeMethodConfig, Features, Prediction, Report, StepContext
from fss.nn import alignment
from fss.nn.alignment import Alignment, align, min_max_scaled, prompts, unit_features
from fss.nn.dino import PATCH, Dino, DinoName, load_dino
from fss.nn.gfsam_rules import Rules
from fss.nn.pointgraph import segment
from fss.nn.sam import NATIVE, STRIDE, SamName, load_sam
from fss.nn.transfer import to_device


@dataclass(frozen=True, kw_only=True)
class GFSAMConfig(Rules, EpisodeMethodConfig):
    """GF-SAM: the defaults are the reference implementation with the paper's networks."""

    name: Literal["gfsam"] = "gfsam"
    """The method."""
    size: int = 1024
    """Side of the images that SAM takes, pixels: 1024; for vit_t any multiple of 16."""
    dino: DinoName = "vitl14"
    """The DINOv2 whose features are compared."""
    dino_weights: str | None = None
    """File of its weights, official (.pth) or safetensors; none: random weights."""
    dino_size: int = 518
    """Side of the images that DINOv2 takes, pixels: a multiple of 14. Its position embeddings were trained for 518."""
    antialias: bool = False
    """Average pixels when the image is reduced to that size; the published figures were made without."""
    sam: SamName = "vit_h"
    """The SAM that makes the masks; vit_t is MobileSAM."""
    sam_weights: str | None = None
    """File of its weights, official (.pth) or safetensors; none: random weights."""
    features: Literal["dino", "sam"] = "dino"
    """Network whose features are compared. 'sam', an ablation (A.5.1): the image embeddings of SAM."""
    compile: bool = False
    """Compile the image encoders with torch.compile: it takes minutes at first and is then faster on a GPU."""

    @property
    def backbone(self) -> str:
        """The name of the networks in configs/published.yaml; the paper's main figures are with SAM vit_h."""
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


NO_POINT = "no point was found, so nothing was segmented"
SCORE_STEPS = 1024  # with few digits a margin that interpolates to 0 at a mask's edge does so at any score
FALLBACK = "no mask passed both gates, so the best one alone was taken"


class GFSAM(EpisodeMethod[GFSAMConfig]):
    """See the module. `trainable` is empty, `non_trainable` has both networks.

    All images pass through DINOv2, and only queries through SAM's encoder.
    """

    Config = GFSAMConfig
    ablations = ("features", *(f.name for f in fields(Rules) if f.default is not None and f.name != "reading"))
    requires_training = False
    has_probabilities = False

    def __init__(self, config: GFSAMConfig) -> None:
        self.config = c = config
        self.needs_query_encoding = c.features == "dino"  # else `encode` has SAM's embedding already
        self.trainable = nn.ModuleDict()
        self._sam = load_sam(c.sam, Path(c.sam_weights) if c.sam_weights else None)
        self._dino: Dino | None = None
        self.non_trainable = nn.ModuleDict({"sam": self._sam})
        if c.features == "dino":
            self._dino = load_dino(c.dino, Path(c.dino_weights) if c.dino_weights else None)
            self.non_trainable["dino"] = self._dino
        self.non_trainable.requires_grad_(False).eval()
        if c.compile:
            self.compile()

    def compile(self) -> None:
        self._sam.image_encoder.compile()
        if self._dino is not None:
            self._dino.compile()

    @property
    def batch_spec(self) -> EpisodeSpec:
        return EpisodeSpec(size=self.config.size)

    def loss(self, batch: EpisodeBatch, context: StepContext) -> tuple[Tensor, Report]:
        raise TypeError("GF-SAM has nothing to train: evaluate it with launch/evaluate.py")

    @torch.no_grad()
    def encode(self, image: Tensor) -> Features:
        """Compute the unit features [1, g g, C] of the g x g patches of an image [1, 3, S, S]: 6 MB of DINOv2 L."""
        c = self.config
        if self._dino is None:
            embedding = self._sam.encode(image)  # [1, 256, S/16, S/16]
            tokens = embedding.flatten(2).mT
            return {"features": unit_features(tokens[0], c)[None], "embedding": embedding}
        small = F.interpolate(image, (c.dino_size,) * 2, mode="bilinear", antialias=c.antialias)
        return {"features": unit_features(self._dino(small)[0], c)[None]}

    @torch.no_grad()
    def encode_query(self, image: Tensor) -> Features:
        """Compute SAM's embedding [1, 256, S/16, S/16] of an image [1, 3, S, S]: at 1024 px 4 MB."""
        return {"embedding": self._sam.encode(image)}

    @torch.no_grad()
    def encode_support(self, features: Features, mask: Tensor) -> Features:
        return self.encode_supports([(features, mask)])[0]

    @torch.no_grad()
    def encode_supports(self, supports: Iterable[tuple[Features, Tensor]]) -> list[Features]:
        references = [(features["features"][0], mask) for features, mask in supports]
        if not references:
            return []
        with _float32(references[0][0]):
            return alignment.encode_supports(references, self.config)

    @torch.no_grad()
    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        """Predict a mask; its score is the largest mean similarity of the query to the supports, in 0..1.

        If several classes claim a pixel, the one whose supports are most similar to some position of the query wins.
        """
        return self.merge(query, *self.candidates(query, supports))

    @torch.no_grad()
    def candidates(self, query: Features, supports: list[Features]) -> tuple[Alignment, Tensor]:
        """Choose points in a query and segment each.

        Returns the alignment, on the CPU, and the masks' logits [N, S/4, S/4].
        """
        alignment = self._align(query, supports)
        pixels = prompts(alignment.points, alignment.grid, _size(query), self.config)
        embedding = query["embedding"]
        return alignment, self._sam.masks(embedding, to_device(pixels, embedding.device))

    @torch.no_grad()
    def merge(self, query: Features, alignment: Alignment, logits: Tensor) -> Prediction:
        """Merge the masks of `candidates`, logits [N, S/4, S/4], to a prediction: the second half of `predict`."""
        with _float32(logits):
            outcome = segment(query["features"][0], alignment, logits, _size(query), self.config)
        unusual = {NO_POINT: len(logits) == 0, FALLBACK: outcome.fallback}
        flags = tuple(flag for flag, applies in unusual.items() if applies)
        similarity = (1 + alignment.mean.max()) / 2  # in 0..1
        score = (similarity * SCORE_STEPS).ceil().clamp(1, SCORE_STEPS) / SCORE_STEPS
        return Prediction(mask=outcome.mask, score=score, flags=flags)

    @torch.no_grad()
    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        alignment = self._align(query, supports)
        similarities = {
            "mean similarity": alignment.mean,
            "max similarity": alignment.max,
            "background similarity": alignment.negative,
        }
        maps = {name: min_max_scaled(x.flatten()).view_as(x) for name, x in similarities.items()}
        return maps | {"points are chosen by": alignment.select}

    def _align(self, query: Features, supports: list[Features]) -> Alignment:
        with _float32(query["features"]):
            return align(query["features"][0], supports, self.config)

    def caveats(self, images_seen: int) -> list[str]:
        c = self.config
        given = {"SAM": c.sam_weights, "DINOv2": c.dino_weights or c.features == "sam"}
        sentences = [
            f"{name} has random weights: scores show that the parts fit together and no more."
            for name, weights in given.items()
            if not weights
        ]
        if (c.dino, c.sam) != ("vitl14", "vit_h"):
            sentences.append(
                f"DINOv2 {c.dino} and SAM {c.sam}; the paper's main figures are those of vitl14 and vit_h."
            )
        return sentences


def _size(query: Features) -> int:
    return STRIDE * query["embedding"].shape[-1]


def _float32(x: Tensor) -> torch.autocast:
    """Return the context in which decisions are made: float32, also if the networks ran under autocast."""
    return torch.autocast(x.device.type, enabled=False)
