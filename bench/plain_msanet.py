"""MSANet in the shape of the reference implementation: what the shipped method is measured against.

Shots, images and layers are processed in turn; every matrix of cosines exists as a whole, with a copy for its ReLU;
the similarity of block 1's last layer is computed and thrown away; prototypes are tiled, everything is concatenated.
Parameters are those of the shipped modules. Nothing else is done twice or in a roundabout way.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.nn.meta_learner import MetaLearner


def resized(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=True)


class Seen(NamedTuple):
    """The features of B images."""

    block2: Tensor
    block3: Tensor
    block4: Tensor
    layers: Sequence[Tensor]
    """That of block 1 which is thrown away, then those of blocks 2 to 4."""


def see(backbone: nn.Module, image: Tensor) -> Seen:
    """Blocks and layers of images by a ResNet."""
    first: list[Tensor] = []
    layers: list[Tensor] = []
    x = backbone.stage(1, backbone.stage(0, image), first)
    blocks = [x := backbone.stage(number, x, layers) for number in (2, 3, 4)]
    return Seen(*blocks, [first[-1], *layers])


class PlainMSANet:
    """`stage` is called with a stage's name and times what runs inside."""

    def __init__(
        self,
        learner: MetaLearner,
        reduce_query: Callable,
        reduce_support: Callable,
        attention: nn.Module,
        stage: Callable = nullcontext,
    ) -> None:
        self.learner = learner
        self.reduce_query = reduce_query
        self.reduce_support = reduce_support
        self.attention = attention
        self.stage = stage

    def forward(
        self, query: Seen, supports: Sequence[Seen], masks: Tensor, base: Tensor, excluded: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scores and the meta learner's logits [B, 2, h, w].

        masks: [B, K, S, S], 1 the class; base: logits [B, 1 + n, h, w]; excluded: bool [B, n], as in `base_map`.
        """
        side = query.block3.shape[-1]
        whole = [(masks[:, shot] == 1).float()[:, None] for shot in range(masks.shape[1])]  # [B, 1, S, S] each
        small = [resized(mask, side) for mask in whole]
        with torch.no_grad():
            with self.stage("multi-similarity"):
                shots = zip(supports, whole, strict=True)
                similarity = sum(self._similarity(query, seen, mask) for seen, mask in shots) / len(supports)
            with self.stage("prior mask"):
                prior = [self._prior(query.block4, s.block4 * m) for s, m in zip(supports, small, strict=True)]
            with self.stage("Gram"):
                gram = self._gram(query.block2)
                unlike = [(gram - self._gram(seen.block2)).norm(dim=(1, 2)) / gram.shape[1] for seen in supports]
        prototypes, attended = [], []
        for seen, mask, coarse in zip(supports, whole, small, strict=True):
            x = self.reduce_support(torch.cat([seen.block3, seen.block2], 1))
            area = F.avg_pool2d(coarse, side) * side * side + 0.0005
            prototypes.append(F.avg_pool2d(x * coarse, side) * side * side / area)  # [B, D, 1, 1]
            pooled = F.adaptive_avg_pool2d(x * F.interpolate(mask, (side, side)), 1)
            attended.append(self.attention.gate(pooled.flatten(1))[:, :, None, None] * x)
        weights = self.learner.weights(torch.stack(unlike, 1))  # [B, K]
        shares = [w[:, None, None, None] for w in weights.unbind(1)]
        prototype = sum(w * p for w, p in zip(shares, prototypes, strict=True))
        prior = sum(w * p for w, p in zip(shares, prior, strict=True))
        unlike = sum(w * u[:, None, None, None] for w, u in zip(shares, unlike, strict=True))  # [B, 1, 1, 1]
        x = self.reduce_query(torch.cat([query.block3, query.block2], 1))
        embedded = self.learner.similarity(similarity)
        x = torch.cat([x, prototype.expand_as(x), embedded, prior, sum(attended) / len(attended)], 1)
        meta = self._decode(x)
        return self._ensemble(meta, unlike, base, excluded), meta

    @staticmethod
    def _similarity(query: Seen, support: Seen, mask: Tensor) -> Tensor:
        """[B, layers, h, w] of one shot."""
        mask = resized(mask, 2 * query.layers[0].shape[-1])
        maps = []
        for q_layer, s_layer in zip(query.layers, support.layers, strict=True):
            mask = resized(mask, s_layer.shape[-1])
            rows = []
            for q, s, share in zip(q_layer.flatten(2), s_layer.flatten(2), mask.flatten(1), strict=True):
                s = s * share  # [C, N]
                if share.sum() > 0:
                    s = s[:, share >= share[share > 0].mean()]
                else:
                    s = s.new_zeros(len(s), 1)
                q = q / (q.norm(dim=0, keepdim=True) + 1e-5)
                s = s / (s.norm(dim=0, keepdim=True) + 1e-5)
                rows.append((q.T @ s).clamp(min=0).mean(1))  # [N]
            maps.append(torch.stack(rows).view(-1, 1, *q_layer.shape[2:]))
        return torch.cat(maps[1:], 1)

    @staticmethod
    def _prior(query: Tensor, support: Tensor) -> Tensor:
        b, _, h, w = query.shape
        q, s = query.flatten(2), support.flatten(2).transpose(1, 2)  # [B, C, N], [B, N, C]
        norms = s.norm(dim=2, keepdim=True) @ q.norm(dim=1, keepdim=True)  # [B, N, N]
        best = (s @ q / (norms + 1e-7)).max(1).values  # [B, N]
        low, high = best.min(1, keepdim=True).values, best.max(1, keepdim=True).values
        return ((best - low) / (high - low + 1e-7)).view(b, 1, h, w)

    @staticmethod
    def _gram(block2: Tensor) -> Tensor:
        rows = block2.flatten(2)
        norms = rows.norm(dim=2, keepdim=True)
        return rows @ rows.transpose(1, 2) / (norms @ norms.transpose(1, 2) + 1e-7)

    def _decode(self, x: Tensor) -> Tensor:
        decoder = self.learner.decoder
        x = F.relu(decoder.merge(x))
        pyramid = decoder.pyramid
        whole = F.relu(pyramid.whole(F.adaptive_avg_pool2d(x, 1))).expand_as(x)
        x = torch.cat([whole, F.relu(pyramid.point(x)), *(F.relu(conv(x)) for conv in pyramid.atrous)], 1)
        x = F.relu(decoder.join(x))
        return decoder.classify(decoder.smooth(x) + x)

    def _ensemble(self, meta: Tensor, unlike: Tensor, base: Tensor, excluded: Tensor | None) -> Tensor:
        ensemble = self.learner.ensemble
        found = base.softmax(1)[:, 1:]
        if excluded is not None:
            found = torch.stack([row[~out].sum(0, keepdim=True) for row, out in zip(found, excluded, strict=True)])
        else:
            found = found.sum(1, keepdim=True)
        background, thing = (
            ensemble.adjust[0] * side + ensemble.adjust[1] * unlike for side in meta.softmax(1).split(1, 1)
        )
        return torch.cat([ensemble.suppress[0] * background + ensemble.suppress[1] * found, thing], 1)
