"""GF-SAM: points and SAM's masks in a graph, nothing trained (Zhang et al., NeurIPS 2024).

DINOv2 says which patches of a query look like the object in the supports (section 4.1); SAM makes a mask of each; which
mask covers which point makes a graph, whose clusters decide what is merged (4.2 and 4.3). All but the two networks is
in fss.nn.alignment and fss.nn.pointgraph, decision by decision.
"""

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch, EpisodeSpec
from fss.methods.base import Features, Method, Peers, Report
from fss.methods.gfsam_config import GFSAMConfig
from fss.nn import alignment
from fss.nn.alignment import Alignment, align, prompts, stretched, unit_features
from fss.nn.dino import load_dino
from fss.nn.gfsam_rules import Rules
from fss.nn.pointgraph import segment
from fss.nn.sam import STRIDE, load_sam

NO_POINT = "no point was found, so nothing was segmented"
STEPS = 1024  # of the margin: with few digits, what interpolates to 0 at a mask's edge does so whatever its size
FALLBACK = "no mask passed both gates, so the best one alone was taken"


class GFSAM(Method):
    """See the module. `trained` is empty, `replica` has both networks.

    All images go through DINOv2, queries alone through SAM's encoder.
    """

    Config = GFSAMConfig
    ablations = ("features", *(f.name for f in fields(Rules) if f.default is not None and f.name != "reading"))
    learns = False
    probable = False

    def __init__(self, config: GFSAMConfig):
        """Raises WeightsError where a file of weights does not fit."""
        self.config = c = config
        self.encodes_queries = c.features == "dino"  # else `encode` has SAM's embedding already
        self.trained = nn.ModuleDict()
        self.replica = nn.ModuleDict({"sam": load_sam(c.sam, c.sam_weights and Path(c.sam_weights))})
        if c.features == "dino":
            self.replica["dino"] = load_dino(c.dino, c.dino_weights and Path(c.dino_weights))
        self.replica.requires_grad_(False).eval()
        if c.compile:
            self.compile()
        self._remarks: tuple[str, ...] = ()

    def compile(self) -> None:
        self.replica["sam"].image_encoder.compile()
        if "dino" in self.replica:
            self.replica["dino"].compile()

    @property
    def consumes(self) -> EpisodeSpec:
        return EpisodeSpec(size=self.config.size)

    def loss(self, batch: EpisodeBatch, peers: Peers, step: int) -> tuple[Tensor, Report]:
        raise TypeError("GF-SAM learns nothing: evaluate it with launch/evaluate.py")

    def after_step(self, peers: Peers) -> None:
        pass

    @torch.no_grad()
    def encode(self, image: Tensor) -> Features:
        """Unit features of the patches, [1, g g, C]: of DINOv2 L 6 MB."""
        c = self.config
        if c.features == "sam":
            embedding = self.replica["sam"].encode(image)  # [1, 256, S/16, S/16]
            tokens = embedding.flatten(2).mT
            return {"features": unit_features(tokens[0], c)[None], "embedding": embedding}
        small = F.interpolate(image, (c.dino_size,) * 2, mode="bilinear", antialias=c.antialias)
        return {"features": unit_features(self.replica["dino"](small)[0], c)[None]}

    @torch.no_grad()
    def encode_query(self, image: Tensor) -> Features:
        """SAM's embedding, [1, 256, S/16, S/16]: at 1024 px 4 MB."""
        return {"embedding": self.replica["sam"].encode(image)}

    @torch.no_grad()
    def describe(self, features: Features, mask: Tensor) -> Features:
        with _exact(mask):
            return alignment.describe(features["features"][0], mask, self.config)

    @torch.no_grad()
    def predict(self, query: Features, supports: list[Features]) -> Tensor:
        """The class above 0 and the background below; how far says how alike the query and the supports are.

        It is the same all over the image, and of use where several classes claim a place: the one whose supports are
        the most like some position of the query, by the mean similarity, has the largest margin.
        """
        return self.merge(query, *self.candidates(query, supports))

    @torch.no_grad()
    def candidates(self, query: Features, supports: list[Features]) -> tuple[Alignment, Tensor]:
        """The points that are chosen in a query, and the mask of each, logits [N, S/4, S/4]."""
        found = self._align(query, supports)
        pixels = prompts(found.points, found.grid, _size(query), self.config)
        return found, self.replica["sam"].masks(query["embedding"], pixels)

    @torch.no_grad()
    def merge(self, query: Features, found: Alignment, logits: Tensor) -> Tensor:
        """The second half of `predict`, of what `candidates` gives."""
        with _exact(logits):
            outcome = segment(query["features"][0], found, logits, _size(query), self.config)
        unusual = {NO_POINT: len(logits) == 0, FALLBACK: outcome.fallback}
        self._remarks = tuple(remark for remark, applies in unusual.items() if applies)
        alike = (1 + found.mean.max()) / 2  # in 0..1
        alike = (alike * STEPS).ceil().clamp(1, STEPS) / STEPS
        margin = alike * (2.0 * outcome.mask - 1)  # [S, S]
        return torch.stack([-margin, margin])[None]

    def remarks(self) -> tuple[str, ...]:
        return self._remarks

    @torch.no_grad()
    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        found = self._align(query, supports)
        named = {"mean similarity": found.mean, "max similarity": found.max, "background similarity": found.negative}
        stretched_maps = {name: stretched(x.flatten()).view_as(x) for name, x in named.items()}
        return stretched_maps | {"points are chosen by": found.select}

    def _align(self, query: Features, supports: list[Features]) -> Alignment:
        with _exact(query["features"]):
            return align(query["features"][0], supports, self.config)

    def cautions(self, images_seen: int) -> list[str]:
        c = self.config
        given = {"SAM": c.sam_weights, "DINOv2": c.dino_weights or c.features == "sam"}
        said = [
            f"{name} has random weights: scores show that the parts fit together and no more."
            for name, weights in given.items()
            if not weights
        ]
        if (c.dino, c.sam) != ("vitl14", "vit_h"):
            said.append(f"DINOv2 {c.dino} and SAM {c.sam}; the paper's main figures are those of vitl14 and vit_h.")
        return said


def _size(query: Features) -> int:
    return STRIDE * query["embedding"].shape[-1]


def _exact(x: Tensor) -> torch.autocast:
    """Decisions are made in float32, whatever the networks computed in."""
    return torch.autocast(x.device.type, enabled=False)
