"""The options of QGNet."""

from dataclasses import dataclass, field
from typing import Literal

from fss.errors import ConfigError, at_least
from fss.methods.frozen_backbone import PretrainedBackboneConfig
from fss.methods.prior.config import PriorConfig
from fss.nn.backbones import BatchNorm
from fss.nn.exports import ExportHeader

PAPER_EPISODES = 1_000_000  # 200 epochs of the roughly 5,000 PASCAL images that have a base class; COCO has more


@dataclass(frozen=True, kw_only=True)
class QGNetConfig(PretrainedBackboneConfig):
    """QGNet: the defaults are the paper's network (473 px, ResNet-50, both region maps, PFENet's decoder)."""

    name: Literal["qgnet"] = "qgnet"
    """The method."""
    prior_map: Literal["on", "off", "shuffled"] = "on"
    """The prior region map. 'shuffled', an ablation: its positions are permuted, always the same way for a map size, so
    that it keeps its values and has nothing to do with the image."""
    prior_weights: str | None = None
    """File of the prior extractor's weights, an export of launch/pretrain_prior.py or an official MoCo checkpoint; its
    ResNet is read from the file."""
    guided_map: bool = True
    """The guided region map (PFENet's prior mask)."""
    heads: bool = False
    """Add a learned 3x3 convolution after each network before the prior region map compares them, as in the reference
    implementation; the paper has none. Needed if the networks differ in width."""
    dim: int = 256
    """Width of the reduced features, the prototype and the decoder."""
    bins: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.25, 0.125])
    """Levels of the pyramid, fine to coarse: fractions of the feature map's side up to 1, numbers of cells above (the
    reference has 60, 30, 15, 8 on PASCAL)."""
    aux_weight: float = 1.0
    """Weight of the mean of the inner losses."""
    reduction_dropout: float = 0.5
    """Share of channels dropped after the reductions and the heads."""
    classifier_dropout: float = 0.1
    """Share of channels dropped before logits."""
    bn: BatchNorm = "frozen"
    """Batch norm of the frozen networks. 'frozen': running statistics. 'reference': those of the batch in training, and
    the running ones drift, as in the reference implementation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("method", self, dim=1, aux_weight=0)
        if not self.bins or min(self.bins) <= 0 or any(b > 1 and b != int(b) for b in self.bins):
            raise ConfigError(
                f"method.bins is {self.bins}: give levels that are each a fraction up to 1 or a whole number of cells"
            )
        for name in ("reduction_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"method.{name} is {getattr(self, name)}: give a share from 0 to below 1")
        if self.prior_map == "off" and not self.guided_map:
            raise ConfigError("method.prior_map is off and method.guided_map is false: keep one of the region maps")
        if self.prior_map == "off" and self.heads:
            raise ConfigError("method.heads is true but method.prior_map is off, which they serve: set heads to false")

    def deviations_from_paper(self, episodes: int, prior: ExportHeader | None) -> list[str]:
        """Return sentences on why a run over `episodes` episodes cannot reach the paper's figures.

        prior: the header of the prior extractor, if there is one.
        """
        sentences = self.random_weights_caveat()
        if prior is not None and prior.method == "moco":
            sentences.append(
                "The prior extractor is an official MoCo checkpoint: trained elsewhere, and not on patches."
            )
        elif prior is not None:
            short = PriorConfig(**(prior.recipe or {})).deviations_from_paper(prior.images_seen or 0)
            if short:
                sentences.append(f"The prior extractor is far from the paper's: {'; '.join(short)}.")
        if episodes < 0.5 * PAPER_EPISODES:
            sentences.append(
                f"Trained on {episodes:,} episodes; the paper's are about {PAPER_EPISODES:,} on PASCAL and more on "
                "COCO: not to be compared with its figures."
            )
        return sentences
