"""The meta learner of BAM and MSANet in its ensemble: from cues of an episode's images to logits."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fss.nn.ensemble import Ensemble
from fss.nn.meta_decoder import MetaDecoder
from fss.nn.multisim import WIDTH, SimilarityEmbedding


class Cues(NamedTuple):
    """Inputs of the meta learner for B episodes of K shots."""

    query: Tensor
    """[B, D, h, w] reduced features."""
    prototype: Tensor
    """[B, K, D]."""
    psi: Tensor
    """[B, K], larger if query and support look less alike, see fss.nn.ensemble."""
    base: Tensor
    """[B, 1, h, w], the probability of any base class."""
    prior: Tensor | None
    """[B, K, h, w] prior masks."""
    similarity: Tensor | None
    """[B, layers, h, w], mean over shots."""
    attention: Tensor | None
    """[B, D, h, w], mean over shots."""


class MetaLearner(nn.Module):
    """Weighs the shots, decodes, and joins the logits with the base learner's map.

    weights: psi [B, K] -> weights of the shots [B, K]. similarity: embeds the similarity maps; None without them.
    prior, attention, prototype: whether the decoder gets these.
    """

    def __init__(
        self,
        dim: int,
        dropout: float,
        *,
        weights: nn.Module,
        similarity: SimilarityEmbedding | None,
        prior: bool,
        attention: bool,
        prototype: bool = True,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.similarity = similarity
        maps = WIDTH * (similarity is not None) + prior + dim * attention
        self.decoder = MetaDecoder(dim, maps, dropout, prototype=prototype)
        self.ensemble = Ensemble()
        self._prototype = prototype

    def forward(self, cues: Cues) -> tuple[Tensor, Tensor]:
        """The ensemble's scores and the meta learner's logits, [B, 2, h, w] each."""
        weights = self.weights(cues.psi)  # [B, K]
        maps = []
        if self.similarity is not None:
            maps.append(self.similarity(cues.similarity))
        if cues.prior is not None:
            maps.append(self.prior(cues))
        if cues.attention is not None:
            maps.append(cues.attention)
        prototype = torch.einsum("bk,bkd->bd", weights, cues.prototype) if self._prototype else None
        meta = self.decoder(cues.query, prototype, maps)
        return self.ensemble(meta, (weights * cues.psi).sum(1), cues.base), meta

    def prior(self, cues: Cues) -> Tensor:
        """The weighted mean of the shots' prior masks, [B, 1, h, w]."""
        return torch.einsum("bk,bkhw->bhw", self.weights(cues.psi), cues.prior)[:, None]
