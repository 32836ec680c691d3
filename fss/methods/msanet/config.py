"""The options of BAM and of MSANet, which is BAM with two modules more."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fss.errors import ConfigError, at_least
from fss.methods.episodic import EpisodicConfig
from fss.nn.multisim import Squeeze

PAPER_EPISODES = 800_000  # 200 epochs of the roughly 4,000 PASCAL images without a novel class; COCO has more


@dataclass(frozen=True, kw_only=True)
class BAMConfig(EpisodicConfig):
    """BAM: the defaults are the paper's network (473 px, ResNet-50, ensemble with the base learner)."""

    multi_similarity: ClassVar[bool] = False
    attention: ClassVar[bool] = False
    reduction: ClassVar[str] = "separate"
    reference: ClassVar[bool] = False

    name: Literal["bam"] = "bam"
    """The method."""
    base_weights: str | None = None
    """File of the base learner's weights, which launch/train_base.py exports; its backbone serves both learners."""
    output: Literal["final", "meta"] = "final"
    """final: the ensemble with the base learner. meta: the meta learner alone; training then has its loss alone."""
    scores: Literal["probabilities", "log"] = "probabilities"
    """What the ensemble's output is to cross-entropy. 'probabilities': taken for logits, as in the published code, so
    that a certain and right answer still costs 0.31 nats. 'log': their logarithm, which is what logits are."""
    prior_mask: Literal["masked", "unmasked", "off"] = "masked"
    """PFENet's prior mask. 'masked': block 4 sees a support whose block 3 is masked, as in PFENet and BAM. 'unmasked':
    it sees the whole support, and its outcome is masked, as in MSANet's code."""
    prototype: bool = True
    """The mean feature of the supports' object; without, an ablation."""
    kshot: Literal["psi", "learned", "mean"] = "psi"
    """How K > 1 shots are weighed. 'psi': by softmax(-psi / temperature), how alike support and query look, for any K.
    'learned': by two layers over psi, as in the published code, for the K of `shots` alone. 'mean': alike."""
    temperature: float = 0.05
    """Of kshot 'psi', in units of psi: the smaller, the more the shot that looks most like the query counts."""
    shots: int = 1
    """K of kshot 'learned'."""
    dim: int = 256
    """Width of the reduced features, the prototype and the decoder."""
    meta_weight: float = 1.0
    """Weight of the meta learner's own loss beside that of the ensemble."""
    reduction_dropout: float = 0.5
    """Share of channels dropped after the reductions."""
    classifier_dropout: float = 0.1
    """Share of channels dropped before logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("method", self, dim=1, meta_weight=0, shots=1, temperature=1e-4)
        for name in ("reduction_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"method.{name} is {getattr(self, name)}: give a share from 0 to below 1")
        if self.kshot == "learned" and self.shots < 2:
            raise ConfigError(
                f"method.shots is {self.shots} but method.kshot is learned, for more than one shot: set shots to the "
                "episodes' number, or kshot to psi"
            )

    def deviations_from_paper(self, episodes: int) -> list[str]:
        """What keeps a run over `episodes` from the paper's figures."""
        if episodes >= 0.5 * PAPER_EPISODES:
            return []
        return [
            f"Trained on {episodes:,} episodes; the paper's are about {PAPER_EPISODES:,} on PASCAL and more on COCO: "
            "not to be compared with its figures."
        ]


@dataclass(frozen=True, kw_only=True)
class MSANetConfig(BAMConfig):
    """MSANet: the defaults compute what the published code computes, without its bugs; docs/msanet.md."""

    name: Literal["msanet"] = "msanet"
    """The method."""
    multi_similarity: bool = True
    """The similarity of query and support at every layer of blocks 2 to 4."""
    attention: bool = True
    """The supports' features weighed by what their object shows."""
    prior_mask: Literal["masked", "unmasked", "off"] = "unmasked"
    """PFENet's prior mask. 'unmasked': block 4 sees the whole support, and its outcome is masked, as in MSANet's code.
    'masked': it sees a support whose block 3 is masked, as in PFENet, which the paper follows."""
    squeeze: Squeeze = "mask"
    """Which pixels of an object multi-similarity compares. 'mask': those with at least the mean share of the class, as
    in the code. 'feature': those whose masked feature is above its mean (Eq. 4)."""
    similarity_bn: Literal["fixed", "batch"] = "fixed"
    """Batch norm behind the similarity maps. 'fixed': mean 0 and variance 1, which only the published option fix_bn
    leaves it. 'batch': statistics of the batch of all ranks."""
    reduction: Literal["separate", "shared"] = "separate"
    """Whether queries and supports are reduced by two convolutions, as in the code, or by one (Eq. 7)."""
    attention_dropout: float = 0.5
    """Share of the attention's values dropped before its sigmoid."""
    reference: bool = False
    """Repeat two bugs of the code: learned weights of shots stay in ascending order of psi, whichever shots these
    belong to, and a VGG's similarity at block 3 knows the last shot only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.attention_dropout < 1:
            raise ConfigError(f"method.attention_dropout is {self.attention_dropout}: give a share from 0 to below 1")
        if self.reference and self.kshot != "learned":
            raise ConfigError(
                f"method.reference is true but method.kshot is {self.kshot}: the code that it repeats has kshot learned"
            )
