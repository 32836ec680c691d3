"""BAM's and MSANet's forward passes and losses on recorded features, by the shipped modules."""

from pathlib import Path

import numpy as np
import torch
from pfenet import close
from torch import Tensor
from torch.nn import functional as F

from fss.nn.ensemble import LearnedShotWeights, ShotWeights, base_map, cosine_gram, psi
from fss.nn.fem import concat_middle_blocks, segmentation_loss
from fss.nn.meta_learner import Cues, MetaLearner
from fss.nn.multisim import (
    Attention,
    SimilarityEmbedding,
    layer_similarity,
    squeezed,
)
from fss.nn.region import downsample_mask, guided_region_map, masked_average, resize

OURS = {
    "init_merge.0": "decoder.merge",
    "ASPP_meta.layer6_0.0": "decoder.pyramid.whole",
    "ASPP_meta.layer6_1.0": "decoder.pyramid.point",
    "ASPP_meta.layer6_2.0": "decoder.pyramid.atrous.0",
    "ASPP_meta.layer6_3.0": "decoder.pyramid.atrous.1",
    "ASPP_meta.layer6_4.0": "decoder.pyramid.atrous.2",
    "res1_meta.0": "decoder.join",
    "res2_meta.0": "decoder.smooth.0",
    "res2_meta.2": "decoder.smooth.2",
    "cls_meta.0": "decoder.classify.0",
    "cls_meta.3": "decoder.classify.3",
    "kshot_rw.0": "weights.layers.0",
    "kshot_rw.2": "weights.layers.2",
    "hyper_final.0": "similarity.layers.0",
    "hyper_final.1": "similarity.layers.1",
}
"""Layer names of the recorded state dict and of MetaLearner."""


def linear(tensor: Tensor) -> Tensor:
    """A parameter of a 1x1 convolution as that of a fully connected layer."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor


class Recorded:
    """One file: features of B episodes of K shots, the learner that its parameters make, and what came out."""

    def __init__(self, path: Path):
        arrays = np.load(path, allow_pickle=False)
        self.golden = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind != "U"}
        self.state = {n.removeprefix("sd/"): t for n, t in self.golden.items() if n.startswith("sd/")}
        self.b, self.k = self.golden["s_y"].shape[:2]
        self.msanet = "qf/00" in self.golden
        self.masks = self.shots("s_y")  # [K B, S, S]
        self.small = downsample_mask(self.masks, self.golden["q3"].shape[2:])  # [K B, 1, h, w]

    def shots(self, name: str) -> Tensor:
        """A recorded [B, K, ...] shot by shot, [K B, ...]."""
        return self.golden[name].transpose(0, 1).flatten(0, 1)

    def episodes(self, rows: Tensor) -> Tensor:
        """[K B, ...] -> [B, K, ...]."""
        return rows.unflatten(0, (self.k, self.b)).transpose(0, 1)

    def learner(self) -> MetaLearner:
        dim = len(self.state["init_merge.0.weight"])
        weights = ShotWeights(1.0)  # of one shot
        if self.k > 1:
            weights = LearnedShotWeights(self.k, sorted_weights=self.msanet)  # BAM's repository has mended that
        embedding = SimilarityEmbedding(self.golden["multisim_maps"].shape[1], None) if self.msanet else None
        learner = MetaLearner(dim, 0.0, weights=weights, similarity=embedding, prior=True, attention=self.msanet)
        state = {"ensemble.adjust": "gram_merge.weight", "ensemble.suppress": "cls_merge.weight"}
        state = {ours: self.state[theirs].flatten() for ours, theirs in state.items()}
        for name, tensor in self.state.items():
            layer, kind = name.rsplit(".", 1)
            if layer in OURS:
                state[f"{OURS[layer]}.{kind}"] = linear(tensor) if layer.startswith("kshot_rw") else tensor
        learner.load_state_dict(state)
        return learner.eval()

    def layers(self) -> list[Tensor]:
        """What multi-similarity compares, [(1 + K) B, C, h, w] each; the first recorded one is thrown away there."""
        numbers = sorted(name.removeprefix("qf/") for name in self.golden if name.startswith("qf/"))[1:]
        return [torch.cat([self.golden[f"qf/{n}"], self.shots(f"sf/{n}")]) for n in numbers]

    def share(self) -> Tensor:
        """As `class_share`, from the side of the first map that was recorded."""
        first = self.golden["qf/00"].shape[2]
        whole = (self.masks == 1).float()[:, None]
        return resize(resize(whole, (2 * first, 2 * first)), (first, first))

    def cues(self, excluded: Tensor | None) -> Cues:
        """All that the shipped functions make of the recorded features."""
        g = self.golden
        support = F.relu(
            F.conv2d(concat_middle_blocks(self.shots("s2"), self.shots("s3")), self.state["down_supp.0.weight"])
        )
        query = F.relu(F.conv2d(concat_middle_blocks(g["q2"], g["q3"]), self.state["down_query.0.weight"]))
        prior = torch.cat(
            [
                guided_region_map(g["q4"], s4 * mask, mask)
                for s4, mask in zip(self.shots("s4").split(self.b), self.small.split(self.b), strict=True)
            ],
            1,
        )  # [B, K, h, w]
        gram = cosine_gram(g["q2"])
        unlike = torch.stack([psi(gram, shot) for shot in cosine_gram(self.shots("s2")).split(self.b)], 1)
        similarity = attention = None
        if self.msanet:
            share = self.share()
            similarity = torch.cat([layer_similarity(layer, share, "mask") for layer in self.layers()], 1)
            gate = Attention(len(support[0]), 0.0)
            gate.load_state_dict(
                {n.removeprefix("gam."): linear(t) for n, t in self.state.items() if n.startswith("gam.")}
            )
            attention = self.episodes(gate(support, self.masks)).mean(1)
        return Cues(
            query=query,
            prototype=self.episodes(masked_average(support, self.small)),
            psi=unlike,
            base=base_map(g["base_logits"], excluded),
            prior=prior,
            similarity=similarity,
            attention=attention,
        )


def check(path: Path) -> None:
    """Reproduce one file; AssertionError says what differs and by how much."""
    recorded = Recorded(path)
    golden, learner = recorded.golden, recorded.learner()
    with torch.no_grad():
        for training in (False, True):
            numbers = torch.arange(golden["base_logits"].shape[1] - 1)
            cues = recorded.cues(golden["cat_idx"][:, None] == numbers if training else None)
            (check_msanet if recorded.msanet else check_bam)(recorded, learner, cues, training)
        weights = learner.weights(cues.psi)
        close(torch.einsum("bk,bkd->bd", weights, cues.prototype), golden["supp_proto"], "prototype")
        close(learner.prior(cues), golden["prior"], "prior mask")
    base = segmentation_loss(golden["base_logits"], golden["y_base"])
    close(base, golden["train/aux2_base_loss"], "base loss")
    if "gram/a" in golden:
        check_functions(golden)


def check_msanet(recorded: Recorded, learner: MetaLearner, cues: Cues, training: bool) -> None:
    """What the file has of an evaluation, or the losses of training."""
    golden = recorded.golden
    scores, meta = learner(cues)
    if training:
        check_losses(golden, scores, meta)
        return
    close(cues.similarity, golden["multisim_maps"], "similarity maps")
    close(learner.similarity(cues.similarity), golden["multisim_embed64"], "embedded similarity")
    close(cues.attention, golden["attention_feat"], "attention")
    close((learner.weights(cues.psi) * cues.psi).sum(1), golden["psi"], "psi")
    close(meta, golden["meta_logits"], "meta logits")
    close(resize(scores, golden["final_out"].shape[2:]), golden["final_out"], "scores")
    share = recorded.share()
    for number, layer in enumerate(recorded.layers(), start=1):
        counts = squeezed(None, resize(share, layer.shape[2:]).flatten(1)).sum(1).tolist()
        expected = golden["support_pixels_used"][:, number].flatten().tolist()
        assert counts == expected, f"support pixels of layer {number}: {counts} for {expected}"


def check_bam(recorded: Recorded, learner: MetaLearner, cues: Cues, training: bool) -> None:
    """What the file has of evaluation and of training."""
    golden, mode = recorded.golden, "train" if training else "eval"
    scores, meta = learner(cues)
    if "kshot_sorted_psi" in golden:
        ascending = cues.psi.sort(1).values
        close(ascending, golden["kshot_sorted_psi"][:, :, 0, 0], "sorted psi")
        close(learner.weights.layers(ascending), golden["kshot_logits_sorted"][:, :, 0, 0], "logits of shots")
    unlike = (learner.weights(cues.psi) * cues.psi).sum(1)
    close(unlike, golden[f"{mode}/psi"], "psi")
    close(cues.base, golden[f"{mode}/base_map"], "base map")
    close(meta, golden[f"{mode}/meta_logits"], "meta logits")
    close(scores, golden[f"{mode}/final_out_lowres"], "scores")
    close(scores[:, :1], golden[f"{mode}/merge_bg"], "merged background")
    close(scores[:, 1:], golden[f"{mode}/gram_fg_out"], "adjusted class")
    suppression = learner.ensemble.suppress.clone()
    learner.ensemble.suppress.copy_(torch.tensor([1.0, 0.0]))
    adjusted = learner.ensemble(meta, unlike, cues.base)[:, :1]
    learner.ensemble.suppress.copy_(suppression)
    close(adjusted, golden[f"{mode}/gram_bg_out"], "adjusted background")
    if training:
        check_losses(golden, scores, meta)
    else:
        expected = golden["eval/final_out_upsampled"]
        close(resize(scores, expected.shape[2:]), expected, "upsampled scores")


def check_losses(golden: dict[str, Tensor], scores: Tensor, meta: Tensor) -> None:
    close(segmentation_loss(scores, golden["y"]), golden["train/main_loss"], "main loss")
    close(segmentation_loss(meta, golden["y"]), golden["train/aux1_meta_loss"], "meta loss")


def check_functions(golden: dict[str, Tensor]) -> None:
    """The entries gram/* and gap/*."""
    a, b = cosine_gram(golden["gram/a"]), cosine_gram(golden["gram/b"])
    close(a, golden["gram/Ga"], "Gram matrix")
    close(b, golden["gram/Gb"], "Gram matrix")
    close(psi(a, b), golden["gram/psi"], "psi")
    close(masked_average(golden["gap/feat"], golden["gap/mask"]), golden["gap/out"][:, :, 0, 0], "masked average")
