"""MSHNet: few-shot segmentation from similarities alone (MSHNet, section 4).

At every layer of a frozen ResNet's last three stages a query is compared with the object in each support in two ways:
by its prototype and pixel by pixel. The trained layers take only these similarities, never the features themselves:
symmetric merging blocks join layers, shots and similarities, and an inverted pyramid joins the scales.

Training and evaluation compute the same function in two orders: `loss` compares a whole batch; `encode`,
`encode_support` and `predict` work image by image, so that an evaluation can cache the features of an image.
docs/mshnet.md lists what the paper leaves open and how it is settled here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.collectives import Collectives, SingleProcess
from fss.data.batch import EpisodeBatch
from fss.errors import ConfigError, at_least
from fss.methods.base import Features, Prediction, Report, StepContext
from fss.methods.frozen_backbone import (
    PretrainedBackboneConfig,
    known_pixels_and_iou,
    pretrained_backbone,
)
from fss.methods.support_vectors import SupportVectors, SupportVectorsMethod
from fss.nn.backbones import BACKBONES, BackboneName
from fss.nn.exports import ExportHeader
from fss.nn.fem import inner_loss, segmentation_loss
from fss.nn.hyperrelation import (
    GenerativeSimilarity,
    ObjectPixels,
    object_pixels,
    object_positions,
    relate,
    stack_layers,
)
from fss.nn.merging import InvertedPyramid
from fss.nn.norm import Normalize, count_batches, synchronise
from fss.nn.region import min_max, resize
from fss.nn.similarity import averages, mean_weights, relu_cosine_mean

Similarity = Literal["prototype", "cosine"]

WIDTH = 128  # gives the paper's numbers of parameters (docs/mshnet.md)


@dataclass(frozen=True, kw_only=True)
class MSHNetConfig(PretrainedBackboneConfig):
    """MSHNet: the defaults are the paper's network as docs/mshnet.md completes it (473 px, ResNet-50)."""

    name: Literal["mshnet"] = "mshnet"
    """The method."""
    backbone: BackboneName = "resnet50"
    """The frozen feature extractor, not dilated, a key of fss.nn.backbones.BACKBONES (the paper's: resnet50 or
    resnet101); every residual block of a ResNet's last three stages is a layer."""
    similarities: Literal["both", "cosine", "prototype"] = "both"
    """The similarities of a query to its supports (the paper's Table 4)."""
    width: int = WIDTH
    """Channels of the finest of three scales, a multiple of 4; each coarser scale has twice as many."""
    dilations: list[int] = field(default_factory=lambda: [2, 4, 6])
    """Rates of the atrous convolutions in the merging blocks, in positions of a map."""

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

    def deviations_from_paper(self) -> list[str]:
        """Return sentences on why a run cannot reach the paper's figures."""
        sentences = self.random_weights_caveat()
        if self.width != WIDTH:
            sentences.append(
                f"method.width is {self.width}: the network has {(self.width / WIDTH) ** 2:.2g} times the parameters "
                "of the paper's, not to be compared with its figures."
            )
        return sentences


BLOCKS = (2, 3, 4)  # of the backbone, fine to coarse: conv3_x to conv5_x of He et al.

Similarities = dict[str, Tensor]
"""Maps [B, K, L, h, w] of a block's L layers by the name of the similarity."""


class MSHNet(SupportVectorsMethod[MSHNetConfig]):
    """See the module. `trainable` has the W of Eq. 4 and the merging blocks, `non_trainable` the backbone."""

    Config = MSHNetConfig
    ablations = ("similarities",)

    def __init__(self, config: MSHNetConfig, *, header: ExportHeader | None = None) -> None:
        self.config = c = config
        self._collectives: Collectives = SingleProcess()
        self._normalize, self._backbone = Normalize(), pretrained_backbone(c, header, dilated=False)
        self.non_trainable = nn.ModuleDict({"normalize": self._normalize, "backbone": self._backbone})
        layers = BACKBONES[c.backbone].layers  # of blocks 2, 3 and 4
        self.trainable = nn.ModuleDict()
        self._generative: list[GenerativeSimilarity] = []  # of blocks 2, 3 and 4, if prototypes are compared
        if "prototype" in c.names:
            channels = self._backbone.channels
            self._generative = [
                GenerativeSimilarity(n, channels[block]) for n, block in zip(layers, BLOCKS, strict=True)
            ]
            self.trainable["generative"] = nn.ModuleList(self._generative)
        self.trainable["pyramid"] = self._pyramid = InvertedPyramid(c.names, layers, c.width, c.dilations)
        synchronise(self.trainable, lambda: self._collectives)

    def loss(self, batch: EpisodeBatch, context: StepContext) -> tuple[Tensor, Report]:
        """Compute the cross-entropy of the prediction plus the mean of the three levels' (Eq. 1), nats, at mask size.

        Every known pixel of the batch of all ranks weighs the same, and batch norm takes its statistics over all ranks:
        the mean over ranks of loss, gradient and report is that of one rank with all episodes.
        """
        self._collectives = context.collectives
        mask = batch.query_mask
        logits, inner = self.forward(batch)
        pixels, iou = known_pixels_and_iou(logits, mask, context)
        main, levels = segmentation_loss(logits, mask, pixels), inner_loss(inner, mask, pixels)
        return main + levels, {"loss/main": main.detach(), "loss/inner": levels.detach(), **iou}

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, list[Tensor]]:
        """Compute logits [B, 2, h, w] of the queries and those of the levels, fine to coarse."""
        count_batches(self._pyramid)
        return self._pyramid(self.similarities(batch))

    def similarities(self, batch: EpisodeBatch) -> list[Similarities]:
        """Compute the similarity maps of each block's layers for a batch; W of Eq. 4 has a gradient."""
        names, shots = self.config.names, batch.support.shape[1]
        images = [batch.query, *batch.support.unbind(1)]
        if batch.query.device.type == "cpu":  # one by one: beside the pixels of the objects there is one map
            maps = (self._layers(image) for image in images)
        else:  # together, which launches fewer kernels
            parts = [(block, layers.chunk(1 + shots)) for block, layers in self._layers(torch.cat(images)).items()]
            maps = ({block: layers[i] for block, layers in parts} for i in range(1 + shots))
        query = next(maps)
        masks = batch.support_mask.unbind(1)
        objects = [self._objects(support, mask) for support, mask in zip(maps, masks, strict=True)]
        similarities = []
        for i, block in enumerate(BLOCKS):
            relation = relate(query[block], [shot.pop(block) for shot in objects], cosine="cosine" in names)
            found = {}
            if "prototype" in names:
                generative = self._generative[i]
                queries = generative.of_queries(query[block])  # [B, L, h, w]
                found["prototype"] = generative(generative.of_prototypes(relation.prototypes), queries)
            if relation.cosine is not None:
                found["cosine"] = relation.cosine
            similarities.append(found)
        return similarities

    def _layers(self, image: Tensor) -> dict[int, Tensor]:
        """Compute the L layers of each block for images [B, 3, S, S], before their ReLU: [B, L, h, w, C]."""
        inner = self._backbone.layers(self._normalize(image)).inner
        return {block: stack_layers(inner.pop(block)) for block in BLOCKS}

    def _objects(self, layers: dict[int, Tensor], mask: Tensor) -> dict[int, list[ObjectPixels]]:
        """Select the object's pixels in the `_layers` of supports, by masks [B, S, S]."""
        return {block: object_pixels(x, object_positions(mask, x.shape[2:4])) for block, x in layers.items()}

    def encode(self, image: Tensor) -> Features:
        """Compute what `encode_support` and `predict` need of an image [1, 3, S, S].

        At 473 px 57 MB with a ResNet-50 and 120 MB with a ResNet-101, all but 0.3 MB of them the unit vectors for the
        cosine similarity; the prototype similarity needs only the projections that it adds up.
        """
        with self._evaluation():
            inner = self._layers(image)
            features = {"size": torch.tensor([image.shape[-1]])}
            for i, block in enumerate(BLOCKS):
                layers = inner.pop(block)
                if "prototype" in self.config.names:
                    generative = self._generative[i]
                    features[f"query {block}"] = generative.of_queries(layers)  # [1, L, h, w]
                    features[f"support {block}"] = generative.of_supports(layers)  # [1, L, h, w]
                if "cosine" in self.config.names:
                    features[f"pixels {block}"] = F.normalize(layers.float(), dim=-1)  # [1, L, h, w, C]
            return features

    def support_vectors(self, features: Features, mask: Tensor) -> SupportVectors:
        """Project the prototype with W of Eq. 4, and give the unit vectors for the cosine similarity.

        mask: uint8 [1, S, S].
        """
        description, vectors, inside = {}, {}, {}
        kind = "pixels" if "cosine" in self.config.names else "support"
        sizes = [features[f"{kind} {block}"].shape[2:4] for block in BLOCKS]
        for block, size in zip(BLOCKS, sizes, strict=True):
            positions = object_positions(mask, size)  # [1, h w]
            if "prototype" in self.config.names:
                projected = features[f"support {block}"].flatten(2)  # [1, L, h w]
                description[f"prototype {block}"] = projected @ mean_weights(positions)[0]  # [1, L]
            if "cosine" in self.config.names:
                vectors[f"columns {block}"] = features[f"pixels {block}"].flatten(2, 3)  # [1, L, h w, C]
                inside[f"columns {block}"] = positions[0]
        return SupportVectors(description, vectors, inside)

    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        size = int(query["size"])
        with self._evaluation():
            logits, _ = self._pyramid(self._compare(query, supports))
            return Prediction(logits=resize(logits.float(), (size, size)))

    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        """Return the energy maps of section 6.1: per similarity and block the mean over layers and shots, in 0..1."""
        with self._evaluation():
            similarities = self._compare(query, supports)
        return {
            f"{name} similarity, block {block}": min_max(maps[name].mean((1, 2)).flatten(1)).view(maps[name].shape[3:])
            for name in self.config.names
            for block, maps in zip(BLOCKS, similarities, strict=True)
        }

    def _compare(self, query: Features, supports: Sequence[Features]) -> list[Similarities]:
        """As `similarities`, from the features of one query and the descriptions of its supports."""
        similarities = []
        for i, block in enumerate(BLOCKS):
            maps = {}
            if "prototype" in self.config.names:
                halves = torch.stack([s[f"prototype {block}"] for s in supports], 1)  # [1, K, L]
                maps["prototype"] = self._generative[i](halves, query[f"query {block}"])
            if "cosine" in self.config.names:
                pixels = query[f"pixels {block}"]  # [1, L, h, w, C]
                columns = [s[f"columns {block}"][0] for s in supports]  # K of [L, n, C]
                share = averages([c.shape[1] for c in columns], pixels.device)  # [K, n]
                cosine = relu_cosine_mean(pixels[0].flatten(1, 2).mT, torch.cat(columns, 1), share)  # [L, K, h w]
                maps["cosine"] = cosine.transpose(0, 1).unflatten(2, pixels.shape[2:4])[None]
            similarities.append(maps)
        return similarities

    def startup_messages(self, images: int, batch: int) -> list[str]:
        return [
            "loss/main and loss/inner start near 0.69 = ln 2, that of guessing: if they stay there, nothing is learned"
        ]

    def chance_levels(self) -> dict[str, float]:
        return {"loss/main": math.log(2), "loss/inner": math.log(2)}

    def caveats(self, images_seen: int) -> list[str]:
        return self.config.deviations_from_paper()
