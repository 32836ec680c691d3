"""QGNet: few-shot segmentation guided by the query's own prior (QGNet, sections IV-B and V-A).

Two frozen networks look at the images: a backbone F at queries and supports, and the pretrained prior extractor F_p at
queries. Where both see the same in a query there is rarely an object (the prior region map); where the query looks like
the object in a support there probably is one (the guided region map). PFENet's decoder joins both maps with the query's
features and the supports' prototype.

Training and evaluation compute the same function in two orders: `loss` encodes queries and supports as one batch,
`encode`, `encode_support` and `predict` go image by image, so that an evaluation can keep what belongs to an image.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fss.data.batch import EpisodeBatch
from fss.errors import ConfigError
from fss.methods.base import Features, Prediction, Report, StepContext
from fss.methods.episodic import FrozenBackboneMethod, imagenet_backbone, tally
from fss.methods.qgnet.config import QGNetConfig
from fss.nn.backbones import make_backbone
from fss.nn.exports import ExportHeader
from fss.nn.fem import FeatureEnrichment, concat_middle_blocks, head, inner_loss, reduction, segmentation_loss
from fss.nn.norm import Normalize, running_statistics
from fss.nn.region import (
    downsample_mask,
    flatten_normalize,
    foreground_vectors,
    guided_region_map,
    guided_similarity,
    masked_average,
    prior_region_map,
    resize,
)
from fss.nn.weights import load_prior

PRIOR_MAP, GUIDED_MAP = "prior region map", "guided region map"


class Frozen(NamedTuple):
    """What the frozen networks say of B episodes of K shots; supports are ordered shot by shot."""

    query: Tensor
    """[B, C2 + C3, h, w] middle features."""
    support: Tensor
    """[K B, C2 + C3, h, w]."""
    mask: Tensor
    """[K B, 1, h, w] share of the class."""
    query4: Tensor
    """[B, C4, h, w] block 4."""
    support4: Tensor
    """[K B, C4, h, w] block 4 of the masked block 3; empty without the guided map."""
    prior4: Tensor | None
    """[B, C, h', w'] block 4 of the prior extractor."""


class QGNet(FrozenBackboneMethod[QGNetConfig]):
    """See the module. `trainable` has reductions, decoder and heads; `non_trainable` both frozen networks."""

    Config = QGNetConfig
    ablations = ("prior_map", "guided_map")

    def __init__(self, config: QGNetConfig, *, header: ExportHeader | None = None):
        """With the `header` of an export, no file that `config` names is read: `restore` loads the weights.

        Raises ConfigError or WeightsError where a file is missing or does not fit.
        """
        self.config = c = config
        backbone = imagenet_backbone(c, header, bn=c.bn)
        self.non_trainable = nn.ModuleDict({"standardise": Normalize(), "backbone": backbone})
        self.trainable = nn.ModuleDict()
        width = backbone.channels[2] + backbone.channels[3]
        for name in ("reduce_query", "reduce_support"):
            self.trainable[name] = reduction(width, c.dim, c.reduction_dropout)
        maps = c.guided_map + (c.prior_map != "off")
        self.trainable["decoder"] = FeatureEnrichment(c.dim, maps, c.bins, c.classifier_dropout)
        self.prior_header: ExportHeader | None = None
        if c.prior_map != "off":
            self._add_prior(header)
        self.non_trainable.train()  # networks with reference batch norm follow; the others stay as they are

    def _add_prior(self, header: ExportHeader | None) -> None:
        """The prior extractor and what is known of its training, and the heads."""
        c, state = self.config, None
        if header is not None:
            self.prior_header = header.prior
            if self.prior_header is None:
                raise ConfigError(f"method.prior_map is {c.prior_map} but these weights were trained with off: keep it")
        elif c.prior_weights:
            state, self.prior_header = load_prior(Path(c.prior_weights))
        else:
            raise ConfigError(
                f"method.prior_map is {c.prior_map} but method.prior_weights names no file: pretrain a prior extractor "
                "with launch/pretrain_prior.py, or set prior_map to off"
            )
        name = self.prior_header.backbone
        self.non_trainable["prior"] = prior = make_backbone(name, bn=c.bn)
        if state is not None:
            prior.load_state_dict(state)
        widths = self.non_trainable["backbone"].channels[4], prior.channels[4]
        if c.heads:
            for side, width in zip(("query_head", "prior_head"), widths, strict=True):
                self.trainable[side] = head(width, c.dim, c.reduction_dropout)
        elif widths[0] != widths[1]:
            raise ConfigError(
                f"method.heads is false but there is no cosine between the {widths[0]} channels of the {c.backbone}'s "
                f"block 4 and the {widths[1]} of the prior extractor's {name}: set heads to true, or take "
                "networks of one width"
            )

    def loss(self, batch: EpisodeBatch, context: StepContext) -> tuple[Tensor, Report]:
        """Cross-entropy of the prediction plus `aux_weight` times the mean of the levels', nats.

        Every known pixel of the batch of all ranks weighs the same: the mean over ranks of a rank's loss, gradient and
        report is what one rank with all their episodes would have. The engine averages micro-batches as equals: with
        accumulation a pixel weighs more the fewer are known in its own micro-batch.
        """
        mask = batch.query_mask
        logits, inner = self.forward(batch)
        pixels, iou = tally(logits, mask, context.collectives)
        main, levels = segmentation_loss(logits, mask, pixels), inner_loss(inner, mask, pixels)
        report = {"loss/main": main.detach(), "loss/inner": levels.detach(), "iou": iou}
        return main + self.config.aux_weight * levels, report

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, 2, h, w] of the queries and those of the pyramid's levels."""
        b, k = batch.support.shape[:2]
        frozen = self._see(batch)
        maps = []
        if frozen.prior4 is not None:
            maps.append(self._prior_map(frozen.query4, frozen.prior4))
        if self.config.guided_map:
            shots = zip(frozen.support4.split(b), frozen.mask.split(b), strict=True)
            maps.append(torch.stack([guided_region_map(frozen.query4, s, m) for s, m in shots]).mean(0))
        support = self.trainable["reduce_support"](frozen.support)  # [K B, D, h, w]
        prototype = masked_average(support, frozen.mask).unflatten(0, (k, b)).mean(0)  # [B, D]
        return self.trainable["decoder"](self.trainable["reduce_query"](frozen.query), prototype, torch.cat(maps, 1))

    @torch.no_grad()
    def _see(self, batch: EpisodeBatch) -> Frozen:
        """Both frozen networks on a batch, all images in one pass.

        Where batch norm takes its statistics over the batch, queries and every shot go alone, as in the reference:
        there, supports must not change what a query looks like.
        """
        c, backbone = self.config, self.non_trainable["backbone"]
        b = len(batch.query)
        images = torch.cat([batch.query[None], batch.support.transpose(0, 1)]).flatten(0, 1)  # [(1 + K) B, 3, S, S]
        images = self.non_trainable["standardise"](images)
        group = b if c.bn == "reference" else len(images)
        block2, block3 = (
            torch.cat(parts) for parts in zip(*(backbone.blocks_2_3(part) for part in images.split(group)), strict=True)
        )
        mask = downsample_mask(batch.support_mask.transpose(0, 1).flatten(0, 1), block3.shape[2:])  # [K B, 1, h, w]
        seen = block3[:b]
        if c.guided_map:
            seen = torch.cat([seen, block3[b:] * mask])
        block4 = torch.cat([backbone.block4(part) for part in seen.split(group)])
        prior4 = self.non_trainable["prior"].blocks(images[:b]).block4 if c.prior_map != "off" else None
        blocks_2_3 = concat_middle_blocks(block2, block3)
        return Frozen(blocks_2_3[:b], blocks_2_3[b:], mask, block4[:b], block4[b:], prior4)

    def _prior_map(self, query4: Tensor, prior4: Tensor) -> Tensor:
        """[B, 1, h, w]; carries a gradient to the heads, where there are any."""
        if self.config.heads:
            query4, prior4 = self.trainable["query_head"](query4), self.trainable["prior_head"](prior4)
        found = prior_region_map(query4, prior4)
        if self.config.prior_map == "shuffled":
            h, w = found.shape[2:]
            order = torch.randperm(h * w, generator=torch.Generator().manual_seed(h * w)).to(found.device)
            found = found.flatten(2)[:, :, order].view_as(found)
        return found

    @torch.no_grad()
    def after_step(self, context: StepContext) -> None:
        if self.config.bn == "reference":
            context.collectives.mean_(running_statistics(self.non_trainable))

    def encode(self, image: Tensor) -> Features:
        """At 473 px with ResNets-50: 7 MB of reduced features, 15 MB of block 3 and 29 MB of block 4."""
        c, backbone = self.config, self.non_trainable["backbone"]
        with self._evaluation():
            block2, block3 = backbone.blocks_2_3(image)
            block4 = backbone.block4(block3)
            blocks_2_3 = concat_middle_blocks(block2, block3)
            features = {
                "size": torch.tensor([image.shape[-1]]),
                "query": self.trainable["reduce_query"](blocks_2_3),  # [1, D, h, w]
                "support": self.trainable["reduce_support"](blocks_2_3),  # [1, D, h, w]
            }
            if c.prior_map != "off":
                features[PRIOR_MAP] = self._prior_map(block4, self.non_trainable["prior"].blocks(image).block4)
            if c.guided_map:
                features |= {"block3": block3, "rows": flatten_normalize(block4)}  # [1, C3, h, w], [1, h w, C4]
            return features

    def encode_support(self, features: Features, mask: Tensor) -> Features:
        """The prototype, and block 4 of the masked block 3 at the n positions that the object touches, as unit rows."""
        with self._evaluation():
            small = downsample_mask(mask, features["support"].shape[2:])
            description = {"prototype": masked_average(features["support"], small)}  # [1, D]
            if self.config.guided_map:
                block4 = self.non_trainable["backbone"].block4(features["block3"] * small)
                description["columns"] = foreground_vectors(block4, small)[None]  # [1, n, C4]
            return description

    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        size = int(query["size"])
        with self._evaluation():
            prototype = torch.cat([s["prototype"] for s in supports]).mean(0, keepdim=True)  # [1, D]
            maps = torch.cat(list(self._region_maps(query, supports).values()), 1)
            logits, _ = self.trainable["decoder"](query["query"], prototype, maps)
            return Prediction(logits=resize(logits.float(), (size, size)))

    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        with self._evaluation():
            return {name: found[0, 0] for name, found in self._region_maps(query, supports).items()}

    def _region_maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        """[1, 1, h, w] each, in the order in which the decoder takes them."""
        maps = {PRIOR_MAP: query[PRIOR_MAP]} if PRIOR_MAP in query else {}
        if self.config.guided_map:
            shots = torch.stack([guided_similarity(query["rows"], s["columns"][0]) for s in supports])  # [K, 1, h w]
            maps[GUIDED_MAP] = shots.mean(0).view(1, 1, *query["query"].shape[2:])
        return maps

    def startup_messages(self, images: int, batch: int) -> list[str]:
        return ["loss/main and loss/inner start near 0.69 = ln 2, that of a coin: staying there, nothing is learned"]

    def chance_levels(self) -> dict[str, float]:
        return {"loss/main": math.log(2), "loss/inner": math.log(2)}

    def caveats(self, images_seen: int) -> list[str]:
        return self.config.deviations_from_paper(images_seen, self.prior_header)

    def export_metadata(self) -> dict[str, Any]:
        return {"prior": self.prior_header}
