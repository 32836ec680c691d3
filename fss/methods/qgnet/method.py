"""QGNet: few-shot segmentation guided by the query's own prior (QGNet, sections IV-B and V-A).

Two frozen networks encode the images: a backbone F queries and supports, the pretrained prior extractor F_p queries
only. Positions of a query with similar features in both rarely show an object (the prior region map); positions that
are similar to the object in a support probably show it (the guided region map). PFENet's decoder joins both maps with
the query's features and the supports' prototype.

Training and evaluation compute the same function in two orders: `loss` encodes queries and supports as one batch;
`encode`, `encode_support` and `predict` work image by image, so that an evaluation can cache the features of an image.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fss.data.batch import EpisodeBatch
from fss.errors import ConfigError, WeightsError
from fss.methods.base import Features, Prediction, Report, StepContext
from fss.methods.frozen_backbone import known_pixels_and_iou, pretrained_backbone
from fss.methods.qgnet.config import QGNetConfig
from fss.methods.support_vectors import SupportVectors, SupportVectorsMethod
from fss.nn.backbones import Backbone, make_backbone
from fss.nn.exports import ExportHeader
from fss.nn.fem import FeatureEnrichment, concat_middle_blocks, head, inner_loss, reduction, segmentation_loss
from fss.nn.norm import Normalize, running_statistics
from fss.nn.region import (
    downsample_mask,
    flatten_normalize,
    guided_region_map,
    guided_similarity,
    masked_average,
    prior_region_map,
    resize,
)
from fss.nn.transfer import device_table, to_device
from fss.nn.weights import load_prior

PRIOR_MAP, GUIDED_MAP = "prior region map", "guided region map"


class FrozenFeatures(NamedTuple):
    """Outputs of the frozen networks for B episodes of K shots; supports are ordered shot by shot."""

    query: Tensor
    """[B, C2 + C3, h, w] concatenated blocks 2 and 3."""
    support: Tensor
    """[K B, C2 + C3, h, w]."""
    mask: Tensor
    """[K B, 1, h, w] share of the class at each position."""
    query4: Tensor
    """[B, C4, h, w] block 4."""
    support4: Tensor
    """[K B, C4, h, w] block 4 of the masked block 3; empty without the guided map."""
    prior4: Tensor | None
    """[B, C, h', w'] block 4 of the prior extractor."""


@device_table
def shuffled_positions(count: int, device: torch.device) -> Tensor:
    """Compute the fixed order, int64 [count], in which `prior_map: shuffled` puts the positions of a map."""
    return to_device(torch.randperm(count, generator=torch.Generator().manual_seed(count)), device)


class QGNet(SupportVectorsMethod[QGNetConfig]):
    """See the module. `trainable` has reductions, decoder and heads; `non_trainable` both frozen networks."""

    Config = QGNetConfig
    ablations = ("prior_map", "guided_map")

    def __init__(self, config: QGNetConfig, *, header: ExportHeader | None = None) -> None:
        self.config = c = config
        self._normalize, self._backbone = Normalize(), pretrained_backbone(c, header, bn=c.bn)
        self.non_trainable = nn.ModuleDict({"normalize": self._normalize, "backbone": self._backbone})
        width = self._backbone.channels[2] + self._backbone.channels[3]
        self._reduce_query = reduction(width, c.dim, c.reduction_dropout)
        self._reduce_support = reduction(width, c.dim, c.reduction_dropout)
        maps = c.guided_map + (c.prior_map != "off")
        self._decoder = FeatureEnrichment(c.dim, maps, c.bins, c.classifier_dropout)
        self.trainable = nn.ModuleDict(
            {"reduce_query": self._reduce_query, "reduce_support": self._reduce_support, "decoder": self._decoder}
        )
        self.prior_header: ExportHeader | None = None
        self._prior: Backbone | None = None
        self._heads: tuple[nn.Module, nn.Module] | None = None
        if c.prior_map != "off":
            self._prior, self.prior_header = self._add_prior(header)
        self.non_trainable.train()  # networks with reference batch norm follow; the others stay as they are

    def _add_prior(self, header: ExportHeader | None) -> tuple[Backbone, ExportHeader]:
        """Build the prior extractor and the heads; returns the prior extractor and the header of its training."""
        c, state = self.config, None
        if header is not None:
            if header.prior is None:
                raise ConfigError(f"method.prior_map is {c.prior_map} but these weights were trained with off: keep it")
            known = header.prior
        elif c.prior_weights:
            state, known = load_prior(Path(c.prior_weights))
        else:
            raise ConfigError(
                f"method.prior_map is {c.prior_map} but method.prior_weights names no file: pretrain a prior extractor "
                "with launch/pretrain_prior.py, or set prior_map to off"
            )
        if known.backbone is None:
            raise WeightsError("the header of the prior extractor does not name its backbone: give another file")
        name = known.backbone
        self.non_trainable["prior"] = prior = make_backbone(name, bn=c.bn)
        if state is not None:
            prior.load_state_dict(state)
        widths = self._backbone.channels[4], prior.channels[4]
        if c.heads:
            query_head, prior_head = (head(width, c.dim, c.reduction_dropout) for width in widths)
            self.trainable.update({"query_head": query_head, "prior_head": prior_head})
            self._heads = query_head, prior_head
        elif widths[0] != widths[1]:
            raise ConfigError(
                f"method.heads is false but there is no cosine between the {widths[0]} channels of the {c.backbone}'s "
                f"block 4 and the {widths[1]} of the prior extractor's {name}: set heads to true, or take "
                "networks of one width"
            )
        return prior, known

    @property
    def frozen(self) -> tuple[str, ...]:
        if self.config.bn == "reference":  # running statistics follow the images
            return ()
        return ("backbone",) if self._prior is None else ("backbone", "prior")

    def loss(self, batch: EpisodeBatch, context: StepContext) -> tuple[Tensor, Report]:
        """Compute the cross-entropy of the prediction plus `aux_weight` times the mean of the levels' (PFENet), nats.

        Every known pixel of the batch of all ranks weighs the same: the mean over ranks of loss, gradient and report is
        that of one rank with all episodes. Micro-batches are averaged as equals: with accumulation a pixel weighs more
        the fewer are known in its own micro-batch.
        """
        mask = batch.query_mask
        logits, inner = self.forward(batch)
        pixels, iou = known_pixels_and_iou(logits, mask, context)
        main, levels = segmentation_loss(logits, mask, pixels), inner_loss(inner, mask, pixels)
        report = {"loss/main": main.detach(), "loss/inner": levels.detach(), **iou}
        return main + self.config.aux_weight * levels, report

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, list[Tensor]]:
        """Compute logits [B, 2, h, w] of the queries and those of the pyramid's levels."""
        b, k = batch.support.shape[:2]
        frozen = self._frozen_features(batch)
        maps = []
        if frozen.prior4 is not None:
            maps.append(self._prior_map(frozen.query4, frozen.prior4))
        if self.config.guided_map:
            shots = zip(frozen.support4.split(b), frozen.mask.split(b), strict=True)
            maps.append(torch.stack([guided_region_map(frozen.query4, s, m) for s, m in shots]).mean(0))
        support = self._reduce_support(frozen.support)  # [K B, D, h, w]
        prototype = masked_average(support, frozen.mask).unflatten(0, (k, b)).mean(0)  # [B, D]
        return self._decoder(self._reduce_query(frozen.query), prototype, torch.cat(maps, 1))

    @torch.no_grad()
    def _frozen_features(self, batch: EpisodeBatch) -> FrozenFeatures:
        """Run both frozen networks on a batch, with all images in one pass.

        If batch norm takes its statistics over the batch, queries and each shot pass separately, as in the reference
        implementation: supports must not change the features of a query.
        """
        c, backbone = self.config, self._backbone
        b = len(batch.query)
        images = torch.cat([batch.query[None], batch.support.transpose(0, 1)]).flatten(0, 1)  # [(1 + K) B, 3, S, S]
        images = self._normalize(images)
        group = b if c.bn == "reference" else len(images)
        block2, block3 = (
            torch.cat(parts) for parts in zip(*(backbone.blocks_2_3(part) for part in images.split(group)), strict=True)
        )
        mask = downsample_mask(batch.support_mask.transpose(0, 1).flatten(0, 1), block3.shape[2:])  # [K B, 1, h, w]
        inputs4 = torch.cat([block3[:b], block3[b:] * mask]) if c.guided_map else block3[:b]
        block4 = torch.cat([backbone.block4(part) for part in inputs4.split(group)])
        prior4 = None if self._prior is None else self._prior.blocks(images[:b]).block4
        blocks_2_3 = concat_middle_blocks(block2, block3)
        return FrozenFeatures(blocks_2_3[:b], blocks_2_3[b:], mask, block4[:b], block4[b:], prior4)

    def _prior_map(self, query4: Tensor, prior4: Tensor) -> Tensor:
        """Compute the prior region map [B, 1, h, w], with a gradient to the heads if there are any."""
        if self._heads is not None:
            query_head, prior_head = self._heads
            query4, prior4 = query_head(query4), prior_head(prior4)
        region_map = prior_region_map(query4, prior4)
        if self.config.prior_map == "shuffled":
            order = shuffled_positions(region_map.shape[2:].numel(), region_map.device)
            region_map = region_map.flatten(2)[:, :, order].view_as(region_map)
        return region_map

    @torch.no_grad()
    def after_step(self, context: StepContext) -> None:
        if self.config.bn == "reference":
            context.collectives.mean_(running_statistics(self.non_trainable))

    def encode(self, image: Tensor) -> Features:
        """Compute what `encode_support` and `predict` need of an image [1, 3, S, S].

        At 473 px with ResNets-50: 7 MB of reduced features, 15 MB of block 3 and 29 MB of block 4.
        """
        c, backbone = self.config, self._backbone
        with self._evaluation():
            block2, block3 = backbone.blocks_2_3(image)
            block4 = backbone.block4(block3)
            blocks_2_3 = concat_middle_blocks(block2, block3)
            features = {
                "size": torch.tensor([image.shape[-1]]),
                "query": self._reduce_query(blocks_2_3),  # [1, D, h, w]
                "support": self._reduce_support(blocks_2_3),  # [1, D, h, w]
            }
            if self._prior is not None:
                features[PRIOR_MAP] = self._prior_map(block4, self._prior.blocks(image).block4)
            if c.guided_map:
                features |= {"block3": block3, "rows": flatten_normalize(block4)}  # [1, C3, h, w], [1, h w, C4]
            return features

    def support_vectors(self, features: Features, mask: Tensor) -> SupportVectors:
        """Compute the prototype, and unit vectors of block 4 of the masked block 3.

        mask: uint8 [1, S, S].
        """
        small = downsample_mask(mask, features["support"].shape[2:])
        vectors, inside = {}, {}
        if self.config.guided_map:
            block4 = self._backbone.block4(features["block3"] * small)
            vectors["columns"] = flatten_normalize(block4)  # [1, h w, C4]
            inside["columns"] = small.flatten() > 0
        return SupportVectors({"prototype": masked_average(features["support"], small)}, vectors, inside)  # [1, D]

    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        size = int(query["size"])
        with self._evaluation():
            prototype = torch.cat([s["prototype"] for s in supports]).mean(0, keepdim=True)  # [1, D]
            maps = torch.cat(list(self._region_maps(query, supports).values()), 1)
            logits, _ = self._decoder(query["query"], prototype, maps)
            return Prediction(logits=resize(logits.float(), (size, size)))

    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        with self._evaluation():
            return {name: x[0, 0] for name, x in self._region_maps(query, supports).items()}

    def _region_maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        """Compute the region maps [1, 1, h, w] by name, in the order of the decoder's input."""
        maps = {PRIOR_MAP: query[PRIOR_MAP]} if PRIOR_MAP in query else {}
        if self.config.guided_map:
            shots = torch.stack([guided_similarity(query["rows"], s["columns"][0]) for s in supports])  # [K, 1, h w]
            maps[GUIDED_MAP] = shots.mean(0).view(1, 1, *query["query"].shape[2:])
        return maps

    def startup_messages(self, images: int, batch: int) -> list[str]:
        return [
            "loss/main and loss/inner start near 0.69 = ln 2, that of guessing: if they stay there, nothing is learned"
        ]

    def chance_levels(self) -> dict[str, float]:
        return {"loss/main": math.log(2), "loss/inner": math.log(2)}

    def caveats(self, images_seen: int) -> list[str]:
        return self.config.deviations_from_paper(images_seen, self.prior_header)

    def export_metadata(self) -> dict[str, Any]:
        return {"prior": self.prior_header}
