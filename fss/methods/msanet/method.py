"""MSANet: multi-similarity and attention, in the ensemble of BAM (MSANet, sections 4 and 5; Lang et al. 2022).

A base learner knows the classes of training (launch/train_base.py). Its backbone, frozen, also serves the meta learner,
which merges a query's features with what the supports say: a prototype, a prior mask, the similarity at every layer and
the attended features of the supports. The ensemble then takes base classes out of the meta learner's prediction. What
paper and published code do differently is in docs/msanet.md; the defaults compute what the code computes.

Training and evaluation compute the same function in two orders, as QGNet does (fss/methods/qgnet/method.py).
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fss.collectives import Collectives, SingleProcess
from fss.data.batch import EpisodeBatch
from fss.errors import WeightsError
from fss.methods.base import Features, Prediction, Report, StepContext
from fss.methods.episodic import FrozenBackboneMethod, tally
from fss.methods.msanet import layer_cache as layer_cache
from fss.methods.msanet.base_network import base_learner
from fss.methods.msanet.config import BAMConfig, MSANetConfig
from fss.nn.ensemble import LearnedShotWeights, ShotWeights, base_map, cosine_gram, log_scores, psi
from fss.nn.exports import ExportHeader, read_header
from fss.nn.fem import concat_middle_blocks, reduction, segmentation_loss
from fss.nn.meta_learner import Cues, MetaLearner
from fss.nn.multisim import Attention, SimilarityEmbedding, class_share, compared_layers, layer_count, layer_similarity
from fss.nn.norm import Normalize
from fss.nn.region import (
    downsample_mask,
    flatten_normalize,
    foreground_vectors,
    guided_region_map,
    guided_similarity,
    masked_average,
    min_max,
    resize,
)


class MSANet(FrozenBackboneMethod[BAMConfig]):
    """See the module. `trainable` has the meta learner and the ensemble's weights, `non_trainable` the base learner."""

    Config = MSANetConfig
    ablations = ("output", "prototype", "multi_similarity", "attention")

    def __init__(self, config: BAMConfig, *, header: ExportHeader | None = None):
        """With the `header` of an export, no file that `config` names is read: `restore` loads the weights.

        Raises ConfigError or WeightsError where a file is missing or does not fit.
        """
        self.config = c = config
        self._collectives: Collectives = SingleProcess()
        base, self.base_header = base_learner(c, header)
        self.classes = self.base_header.class_names
        self.non_trainable = nn.ModuleDict({"standardise": Normalize(), "backbone": base.backbone, "base": base.head})
        self.non_trainable.eval()
        width = base.backbone.channels[2] + base.backbone.channels[3]
        self._reductions = ("reduce", "reduce") if c.reduction == "shared" else ("reduce_query", "reduce_support")
        self.trainable = nn.ModuleDict()
        for name in dict.fromkeys(self._reductions):
            self.trainable[name] = reduction(width, c.dim, c.reduction_dropout)
        if c.reduction == "separate" and not (c.prototype or c.attention):  # ask nothing of the supports' features
            self.trainable["reduce_support"].requires_grad_(False)
        if c.attention:
            self.trainable["attention"] = Attention(c.dim, c.attention_dropout)
        self.trainable["learner"] = learner = MetaLearner(
            c.dim,
            c.classifier_dropout,
            weights=self._weights(),
            similarity=self._embedding(),
            prior=c.prior_mask != "off",
            attention=c.attention,
            prototype=c.prototype,
        )
        learner.ensemble.requires_grad_(c.output == "final")

    def _weights(self) -> nn.Module:
        c = self.config
        match c.kshot:
            case "psi":
                return ShotWeights(c.temperature)
            case "mean":
                return ShotWeights(math.inf)
            case "learned":
                return LearnedShotWeights(c.shots, sorted_weights=c.reference)

    def _embedding(self) -> SimilarityEmbedding | None:
        c = self.config
        if not c.multi_similarity:
            return None
        ranks = (lambda: self._collectives) if c.similarity_bn == "batch" else None
        return SimilarityEmbedding(layer_count(c.backbone), ranks)

    def seen_classes(self) -> dict[int, str]:
        return self.classes

    def loss(self, batch: EpisodeBatch, context: StepContext) -> tuple[Tensor, Report]:
        """Cross-entropy of the ensemble plus `meta_weight` times that of the meta learner, nats.

        The published code adds the base learner's, on which nothing that learns depends. Every known pixel of the batch
        of all ranks weighs the same, as in QGNet.
        """
        self._collectives = context.collectives
        mask = batch.query_mask
        logits, meta = self.forward(batch)
        pixels, iou = tally(logits, mask, context.collectives)
        own = segmentation_loss(meta, mask, pixels)
        report = {"loss/meta": own.detach(), "iou": iou}
        if self.config.output == "meta":
            return own, report
        main = segmentation_loss(logits, mask, pixels)
        return main + self.config.meta_weight * own, {"loss/main": main.detach(), **report}

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Logits [B, 2, h, w] of what `output` names and of the meta learner."""
        return self._decide(self._cues(batch))

    def _cues(self, batch: EpisodeBatch) -> Cues:
        """Queries and all shots as one batch."""
        c, backbone = self.config, self.non_trainable["backbone"]
        b, k = batch.support.shape[:2]
        images = torch.cat([batch.query[None], batch.support.transpose(0, 1)]).flatten(0, 1)  # [(1 + K) B, 3, S, S]
        images = self.non_trainable["standardise"](images)
        masks = batch.support_mask.transpose(0, 1).flatten(0, 1)  # [K B, S, S]
        similarity = None
        if c.multi_similarity:
            block2, block3, block4, similarity = self._compare(images, class_share(masks, c.backbone), k)
        else:
            block2, block3 = backbone.blocks_2_3(images)
            block4 = backbone.block4(block3 if c.prior_mask == "unmasked" else block3[:b])
        query4, support4 = block4[:b], block4[b:]
        small = downsample_mask(masks, block3.shape[2:])  # [K B, 1, h, w]
        prior = None
        if c.prior_mask != "off":
            if c.prior_mask == "masked":
                support4 = backbone.block4(block3[b:] * small)
            shots = zip(support4.split(b), small.split(b), strict=True)
            prior = torch.cat([guided_region_map(query4, s, m) for s, m in shots], 1)  # [B, K, h, w]
        grams = cosine_gram(block2)
        unlike = torch.stack([psi(grams[:b], shot) for shot in grams[b:].split(b)], 1)  # [B, K]
        with torch.no_grad():
            seen_classes = torch.tensor(list(self.classes), device=query4.device)  # [n]
            base = base_map(self.non_trainable["base"](query4), excluded=batch.class_id[:, None] == seen_classes)
        blocks_2_3 = concat_middle_blocks(block2, block3)
        query, support = (
            self.trainable[name](part)
            for name, part in zip(self._reductions, (blocks_2_3[:b], blocks_2_3[b:]), strict=True)
        )
        prototype = masked_average(support, small).unflatten(0, (k, b)).transpose(0, 1)  # [B, K, D]
        attention = None
        if c.attention:
            attention = self.trainable["attention"](support, masks).unflatten(0, (k, b)).mean(0)  # [B, D, h, w]
        return Cues(query, prototype, unlike, base, prior, similarity, attention)

    def _compare(self, images: Tensor, share: Tensor, shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Blocks 2, 3 and 4 of all images, and the similarity [B, layers, h, w]; one block's layers exist at a time."""
        blocks, maps = [], []
        for number, block, layers in compared_layers(self.non_trainable["backbone"], images):
            blocks.append(block)
            skip = self._skipped(number, shots)
            maps += [layer_similarity(layer, share, self.config.squeeze, skip) for layer in layers]
            layers.clear()  # before the next block is computed
        return *blocks, torch.cat([resize(found, block.shape[2:]) for found in maps], 1)

    def _skipped(self, number: int, shots: int) -> int:
        """How many of the first shots a block's similarity leaves out: with `reference` a VGG's block 3 all but one."""
        return shots - 1 if self.config.reference and self.config.backbone.startswith("vgg") and number == 3 else 0

    def _decide(self, cues: Cues) -> tuple[Tensor, Tensor]:
        """Logits [B, 2, h, w] of what `output` names and of the meta learner."""
        scores, meta = self.trainable["learner"](cues)
        if self.config.output == "meta":
            return meta, meta
        return log_scores(scores) if self.config.scores == "log" else scores, meta

    def encode(self, image: Tensor) -> Features:
        """At 473 px with a ResNet-50 103 MB of layers and 15 MB of block 4, in half precision, 7 MB of reduced features
        and 1 MB of Gram matrix; 15 MB of block 3 too where the prior mask is 'masked'. Without multi-similarity there
        are no layers, and block 4 has 29 MB."""
        c, backbone = self.config, self.non_trainable["backbone"]
        with self._evaluation():
            layers = {}
            if c.multi_similarity:
                blocks = []
                for number, block, inner in compared_layers(backbone, image):
                    blocks.append(block)
                    layers |= layer_cache.of_image(number, inner, c.squeeze)
                    inner.clear()
                block2, block3, block4 = blocks
            else:
                block2, block3 = backbone.blocks_2_3(image)
                block4 = backbone.block4(block3)
            blocks_2_3 = concat_middle_blocks(block2, block3)
            features = {
                "size": torch.tensor([image.shape[-1]]),
                "query": self.trainable[self._reductions[0]](blocks_2_3),  # [1, D, h, w]
                "support": self.trainable[self._reductions[1]](blocks_2_3),  # [1, D, h, w]
                "gram": cosine_gram(block2),  # [1, C2, C2]
                "base": base_map(self.non_trainable["base"](block4)),  # [1, 1, h, w]
                **layers,
            }
            if c.prior_mask != "off":
                features["rows"] = flatten_normalize(block4).to(
                    layer_cache.CACHE_DTYPE if layers else torch.float32
                )  # [1, h w, C4]
            if c.prior_mask == "masked":
                features["block3"] = block3
            return features

    def encode_support(self, features: Features, mask: Tensor) -> Features:
        """Prototype and attended features, and the pixels of the object that prior mask and multi-similarity compare.

        At 473 px with an object on a quarter of the image 30 MB.
        """
        c, size = self.config, features["support"].shape[2:]
        with self._evaluation():
            small = downsample_mask(mask, size)
            description = {"prototype": masked_average(features["support"], small), "gram": features["gram"]}
            if c.prior_mask == "masked":
                block4 = self.non_trainable["backbone"].block4(features["block3"] * small)
                description["columns"] = foreground_vectors(block4, small)[None]  # [1, n, C4]
            elif c.prior_mask == "unmasked":
                description["columns"] = features["rows"][:, small.flatten() > 0]
            if c.attention:
                description["attention"] = self.trainable["attention"](features["support"], mask)  # [1, D, h, w]
            if c.multi_similarity:
                description |= layer_cache.of_object(features, class_share(mask, c.backbone), c.squeeze)
            return description

    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        with self._evaluation():
            logits, _ = self._decide(self._episode(query, supports))
            return Prediction(logits=resize(logits.float(), (int(query["size"]),) * 2))

    def _episode(self, query: Features, supports: list[Features]) -> Cues:
        """The cues of one episode, B = 1."""
        c, size = self.config, query["query"].shape[2:]
        prior = similarity = attention = None
        if c.prior_mask != "off":
            rows = query["rows"].float()
            shots = [guided_similarity(rows, s["columns"][0].float()) for s in supports]  # [1, h w] each
            prior = torch.stack(shots, 1).unflatten(2, size)  # [1, K, h, w]
        if c.multi_similarity:
            similarity = layer_cache.similarity(query, supports, size, partial(self._skipped, shots=len(supports)))
        if c.attention:
            attention = torch.cat([s["attention"] for s in supports]).mean(0, keepdim=True)
        return Cues(
            query=query["query"],
            prototype=torch.stack([s["prototype"] for s in supports], 1),
            psi=torch.stack([psi(query["gram"], s["gram"]) for s in supports], 1),
            base=query["base"],
            prior=prior,
            similarity=similarity,
            attention=attention,
        )

    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        """Prior mask, mean similarity of each block (Fig. 6), what the base learner knows, and what is predicted."""
        with self._evaluation():
            learner, cues = self.trainable["learner"], self._episode(query, supports)
            scores, meta = learner(cues)
            shown = {"meta prediction": meta.softmax(1)[:, 1:]}
            if self.config.output == "final":
                shown |= {"base classes": cues.base, "final prediction": log_scores(scores).softmax(1)[:, 1:]}
            if cues.prior is not None:
                shown["prior mask"] = learner.prior(cues)
            if cues.similarity is not None:
                blocks = torch.tensor([layer_cache.block_of(name) for name in layer_cache.names(query)])
                for number in blocks.unique().tolist():
                    energy = cues.similarity[:, blocks == number].mean(1)  # [1, h, w]
                    shown[f"similarity, block {number}"] = min_max(energy.flatten(1)).view_as(energy)[None]
            return {name: found[0, 0].clamp(0, 1) for name, found in shown.items()}

    def startup_messages(self, images: int, batch: int) -> list[str]:
        names = " and ".join(self.chance_levels())
        return [f"{names}: near 0.69 = ln 2, that of a coin, at the start; staying there, nothing is learned"]

    def chance_levels(self) -> dict[str, float]:
        main = {"loss/main": math.log(2)} if self.config.output == "final" else {}
        return {**main, "loss/meta": math.log(2)}

    def caveats(self, images_seen: int) -> list[str]:
        return self.config.deviations_from_paper(images_seen)

    def init_from(self, path: Path) -> list[str]:
        """Also raises WeightsError where the base learner inside the file knows other classes than `base_weights`."""
        said = super().init_from(path)
        header = read_header(path).base or ExportHeader()
        inside = header.class_names
        if inside != self.classes:
            raise WeightsError(
                f"{path} holds a base learner of other classes than method.base_weights "
                f"({', '.join(sorted(set(inside.values()) ^ set(self.classes.values())))}): start from a run of the "
                "same fold and validate options"
            )
        self.base_header = header  # whose weights these now are
        return said

    def export_metadata(self) -> dict[str, Any]:
        return {"base": self.base_header}
