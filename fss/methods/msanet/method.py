"""MSANet: multi-similarity and attention, in the ensemble of BAM (MSANet, sections 4 and 5; Lang et al. 2022).

A base learner segments the classes of training (launch/train_base.py). The meta learner uses its frozen backbone, too.
It merges a query's features with cues from the supports: a prototype, a prior mask, the similarity at every layer and
the supports' features under attention. The ensemble then removes base classes from the meta learner's prediction.
docs/msanet.md lists where paper and reference implementation differ; the defaults follow the reference implementation.

Training and evaluation compute the same function in two orders, as in QGNet (fss/methods/qgnet/method.py).
"""

import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fss.collectives import Collectives, SingleProcess
from fss.data.batch import EpisodeBatch
from fss.errors import WeightsError
from fss.methods.base import Features, MethodConfig, Prediction, Report, StepContext
from fss.methods.frozen_backbone import known_pixels_and_iou
from fss.methods.msanet import layer_cache
from fss.methods.msanet.config import BAMConfig, EnsembleConfig, MSANetConfig
from fss.methods.msanet.networks import load_base_learner, shot_weights, similarity_embedding
from fss.methods.support_vectors import SupportVectors, SupportVectorsMethod
from fss.nn.ensemble import base_map, cosine_gram, log_scores, psi
from fss.nn.exports import ExportHeader, read_header
from fss.nn.fem import concat_middle_blocks, reduction, segmentation_loss
from fss.nn.meta_learner import Cues, MetaLearner
from fss.nn.multisim import Attention, class_share, compared_layers, layer_similarity
from fss.nn.norm import Normalize, count_batches
from fss.nn.region import (
    downsample_mask,
    flatten_normalize,
    guided_region_map,
    guided_similarity,
    masked_average,
    min_max,
    resize,
)


class MSANet(SupportVectorsMethod[EnsembleConfig]):
    """See the module. `trainable` has the meta learner and the ensemble's weights, `non_trainable` the base learner."""

    Config: ClassVar[type[MethodConfig]] = MSANetConfig
    ablations: ClassVar[tuple[str, ...]] = ("output", "prototype", "multi_similarity", "attention")

    def __init__(self, config: EnsembleConfig, *, header: ExportHeader | None = None) -> None:
        self.config = c = config
        self._collectives: Collectives = SingleProcess()
        base, self.base_header = load_base_learner(c, header)
        self.classes = self.base_header.class_names
        self._normalize, self._backbone, self._base_head = Normalize(), base.backbone, base.head
        frozen = {"normalize": self._normalize, "backbone": self._backbone, "base": self._base_head}
        self.non_trainable = nn.ModuleDict(frozen).eval()
        self.non_trainable.register_buffer("class_ids", torch.tensor(list(self.classes), dtype=torch.int64), False)
        width = base.backbone.channels[2] + base.backbone.channels[3]
        self._reduce_query = self._reduce_support = reduction(width, c.dim, c.reduction_dropout)
        if c.reduction == "shared":
            self.trainable = nn.ModuleDict({"reduce": self._reduce_query})
        else:
            self._reduce_support = reduction(width, c.dim, c.reduction_dropout)
            self._reduce_support.requires_grad_(c.prototype or c.attention)  # without both nothing depends on it
            reductions = {"reduce_query": self._reduce_query, "reduce_support": self._reduce_support}
            self.trainable = nn.ModuleDict(reductions)
        self._attention: Attention | None = None
        if c.attention:
            self.trainable["attention"] = self._attention = Attention(c.dim, c.attention_dropout)
        self.trainable["learner"] = self._learner = MetaLearner(
            c.dim,
            c.classifier_dropout,
            weights=shot_weights(c),
            similarity=similarity_embedding(c, lambda: self._collectives),
            prior=c.prior_mask != "off",
            attention=c.attention,
            prototype=c.prototype,
        )
        self._learner.ensemble.requires_grad_(c.output == "final")

    def seen_classes(self) -> dict[int, str]:
        return self.classes

    @property
    def frozen(self) -> tuple[str, ...]:
        return ("backbone", "base")

    def loss(self, batch: EpisodeBatch, context: StepContext) -> tuple[Tensor, Report]:
        """Compute the cross-entropy of the ensemble plus `meta_weight` times that of the meta learner, nats.

        The reference implementation adds the base learner's, which has no gradient to any trained weight. Every known
        pixel of the batch of all ranks weighs the same, as in QGNet.
        """
        self._collectives = context.collectives
        mask = batch.query_mask
        logits, meta = self.forward(batch)
        pixels, iou = known_pixels_and_iou(logits, mask, context)
        own = segmentation_loss(meta, mask, pixels)
        report = {"loss/meta": own.detach(), **iou}
        if self.config.output == "meta":
            return own, report
        main = segmentation_loss(logits, mask, pixels)
        return main + self.config.meta_weight * own, {"loss/main": main.detach(), **report}

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Compute logits [B, 2, h, w]: those that `output` names, and those of the meta learner."""
        count_batches(self._learner)
        return self._logits(self._cues(batch))

    def _cues(self, batch: EpisodeBatch) -> Cues:
        """Compute the cues of B episodes, with queries and all shots as one batch of images."""
        c, backbone = self.config, self._backbone
        b, k = batch.support.shape[:2]
        images = torch.cat([batch.query[None], batch.support.transpose(0, 1)]).flatten(0, 1)  # [(1 + K) B, 3, S, S]
        images = self._normalize(images)
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
        dissimilarity = torch.stack([psi(grams[:b], shot) for shot in grams[b:].split(b)], 1)  # [B, K]
        with torch.no_grad():
            base = base_map(
                self._base_head(query4), excluded=batch.class_id[:, None] == self.non_trainable.get_buffer("class_ids")
            )
        blocks_2_3 = concat_middle_blocks(block2, block3)
        query, support = self._reduce_query(blocks_2_3[:b]), self._reduce_support(blocks_2_3[b:])
        prototype = masked_average(support, small).unflatten(0, (k, b)).transpose(0, 1)  # [B, K, D]
        attention = None
        if self._attention is not None:
            attention = self._attention(support, masks).unflatten(0, (k, b)).mean(0)  # [B, D, h, w]
        return Cues(query, prototype, dissimilarity, base, prior, similarity, attention)

    def _compare(self, images: Tensor, share: Tensor, shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute blocks 2, 3 and 4 of all images and the similarity maps [B, layers, h, w].

        Only the layers of one block exist at a time.
        """
        blocks, maps = [], []
        for number, block, layers in compared_layers(self._backbone, images):
            blocks.append(block)
            skip = self._skipped(number, shots)
            maps += [layer_similarity(layer, share, self.config.squeeze, skip) for layer in layers]
            layers.clear()  # before the next block is computed
        block2, block3, block4 = blocks
        return block2, block3, block4, torch.cat([resize(x, block4.shape[2:]) for x in maps], 1)

    def _skipped(self, number: int, shots: int) -> int:
        """Count the shots that a block's similarity leaves out: with `reference` all but one at a VGG's block 3."""
        return shots - 1 if self.config.reference and self.config.backbone.startswith("vgg") and number == 3 else 0

    def _logits(self, cues: Cues) -> tuple[Tensor, Tensor]:
        """As `forward`, from the cues."""
        scores, meta = self._learner(cues)
        if self.config.output == "meta":
            return meta, meta
        return log_scores(scores) if self.config.scores == "log" else scores, meta

    def encode(self, image: Tensor) -> Features:
        """Compute what `encode_support` and `predict` need of an image [1, 3, S, S].

        At 473 px with a ResNet-50 103 MB of layers and 15 MB of block 4, in half precision, 7 MB of reduced features
        and 1 MB of Gram matrix; 15 MB of block 3, too, if the prior mask is 'masked'. Without multi-similarity there
        are no layers, and block 4 has 29 MB.
        """
        c, backbone = self.config, self._backbone
        with self._evaluation():
            layers: Features = {}
            if c.multi_similarity:
                blocks = []
                for number, block, inner in compared_layers(backbone, image):
                    blocks.append(block)
                    layers |= layer_cache.image_layers(number, inner, c.squeeze)
                    inner.clear()
                block2, block3, block4 = blocks
            else:
                block2, block3 = backbone.blocks_2_3(image)
                block4 = backbone.block4(block3)
            blocks_2_3 = concat_middle_blocks(block2, block3)
            features = {
                "size": torch.tensor([image.shape[-1]]),
                "query": self._reduce_query(blocks_2_3),  # [1, D, h, w]
                "support": self._reduce_support(blocks_2_3),  # [1, D, h, w]
                "gram": cosine_gram(block2),  # [1, C2, C2]
                "base": base_map(self._base_head(block4)),  # [1, 1, h, w]
                **layers,
            }
            if c.prior_mask != "off":
                features["rows"] = flatten_normalize(block4).to(
                    layer_cache.CACHE_DTYPE if layers else torch.float32
                )  # [1, h w, C4]
            if c.prior_mask == "masked":
                features["block3"] = block3
            return features

    def support_vectors(self, features: Features, mask: Tensor) -> SupportVectors:
        """Compute the prototype, the features under attention and the vectors of the object that the maps compare.

        mask: uint8 [1, S, S]. The description has at 473 px with an object on a quarter of the image 30 MB.
        """
        c, size = self.config, features["support"].shape[2:]
        small = downsample_mask(mask, size)
        description = {"prototype": masked_average(features["support"], small), "gram": features["gram"]}
        if self._attention is not None:
            description["attention"] = self._attention(features["support"], mask)  # [1, D, h, w]
        vectors, inside = {}, {}
        if c.prior_mask != "off":
            inside["columns"] = small.flatten() > 0
            if c.prior_mask == "masked":
                vectors["columns"] = flatten_normalize(self._backbone.block4(features["block3"] * small))
            else:
                vectors["columns"] = features["rows"]  # [1, h w, C4]
        if c.multi_similarity:
            layers = layer_cache.object_masks(features, class_share(mask, c.backbone), c.squeeze)
            vectors |= {name: features[name] for name in layers}  # [1, N, C] each
            inside |= layers
        return SupportVectors(description, vectors, inside)

    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        with self._evaluation():
            logits, _ = self._logits(self._episode_cues(query, supports))
            return Prediction(logits=resize(logits.float(), (int(query["size"]),) * 2))

    def _episode_cues(self, query: Features, supports: list[Features]) -> Cues:
        """Compute the cues of one episode, B = 1."""
        c, size = self.config, query["query"].shape[2:]
        prior = similarity = attention = None
        if c.prior_mask != "off":
            rows = query["rows"].float()
            shots = [guided_similarity(rows, s["columns"][0].float()) for s in supports]  # [1, h w] each
            prior = torch.stack(shots, 1).unflatten(2, size)  # [1, K, h, w]
        if c.multi_similarity:
            similarity = layer_cache.similarity_maps(query, supports, size, partial(self._skipped, shots=len(supports)))
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
        """Return the prior mask, the mean similarity of each block (Fig. 6), the base classes and the predictions."""
        with self._evaluation():
            cues = self._episode_cues(query, supports)
            scores, meta = self._learner(cues)
            maps = {"meta prediction": meta.softmax(1)[:, 1:]}
            if self.config.output == "final":
                maps |= {"base classes": cues.base, "final prediction": log_scores(scores).softmax(1)[:, 1:]}
            if cues.prior is not None:
                maps["prior mask"] = self._learner.prior(cues)
            if cues.similarity is not None:
                blocks = torch.tensor([layer_cache.block_number(name) for name in layer_cache.layer_names(query)])
                for number in blocks.unique().tolist():
                    energy = cues.similarity[:, blocks == number].mean(1)  # [1, h, w]
                    maps[f"similarity, block {number}"] = min_max(energy.flatten(1)).view_as(energy)[None]
            return {name: x[0, 0].clamp(0, 1) for name, x in maps.items()}

    def startup_messages(self, images: int, batch: int) -> list[str]:
        names = " and ".join(self.chance_levels())
        return [f"{names}: near 0.69 = ln 2, that of guessing, at the start; if they stay there, nothing is learned"]

    def chance_levels(self) -> dict[str, float]:
        main = {"loss/main": math.log(2)} if self.config.output == "final" else {}
        return {**main, "loss/meta": math.log(2)}

    def caveats(self, images_seen: int) -> list[str]:
        return self.config.deviations_from_paper(images_seen)

    def init_from(self, path: Path) -> list[str]:
        """Start from an export, with its base learner.

        Also raises WeightsError if that base learner was trained on other classes than that of `base_weights`.
        """
        messages = super().init_from(path)
        header = read_header(path).base or ExportHeader()
        classes = header.class_names
        if classes != self.classes:
            raise WeightsError(
                f"{path} holds a base learner of other classes than method.base_weights "
                f"({', '.join(sorted(set(classes.values()) ^ set(self.classes.values())))}): start from a run of the "
                "same fold and validate options"
            )
        self.base_header = header  # the base learner is now the file's
        return messages

    def export_metadata(self) -> dict[str, Any]:
        return {"base": self.base_header}


class BAM(MSANet):
    """BAM (Lang et al. 2022): MSANet without multi-similarity and attention, and with PFENet's prior mask."""

    Config = BAMConfig
    ablations = ("output", "prototype")
