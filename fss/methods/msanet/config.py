"""The options of BAM and of MSANet, which is BAM with two modules more."""

from dataclasses import dataclass
from typing import Literal

from fss.errors import ConfigError, at_least
from fss.methods.frozen_backbone import FrozenBackboneConfig
from fss.nn.multisim import Squeeze

PAPER_EPISODES = 800_000  # 200 epochs of the roughly 4,000 PASCAL images without a novel class; COCO has more


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig(FrozenBackboneConfig):
    """The options that BAM and MSANet share. What only MSANet can be asked for is a property here, fixed as in BAM."""

    base_weights: str | None = None
    """File of the base learner's weights, an export of launch/train_base.py; both learners use its backbone."""
    output: Literal["final", "meta"] = "final"
    """'final': the ensemble with the base learner. 'meta': the meta learner alone, trained with its loss alone."""
    scores: Literal["probabilities", "log"] = "probabilities"
    """How cross-entropy takes the ensemble's output. 'probabilities': as logits, as in the reference implementation; a
    certain and right answer then still costs 0.31 nats. 'log': their logarithm is taken first."""
    prior_mask: Literal["masked", "unmasked", "off"]
    """PFENet's prior mask."""
    prototype: bool = True
    """Use the mean feature of the supports' object; false: an ablation."""
    kshot: Literal["psi", "learned", "mean"] = "psi"
    """Weights of K > 1 shots. 'psi': softmax(-psi / temperature), by how similar support and query look, for any K.
    'learned': by two layers over psi, as in the reference implementation, only for the K of `shots`. 'mean': equal."""
    temperature: float = 0.05
    """Of kshot 'psi', in units of psi: the smaller, the more weight has the shot that is most similar to the query."""
    shots: int = 1
    """K of kshot 'learned'."""
    dim: int = 256
    """Width of the reduced features, the prototype and the decoder."""
    meta_weight: float = 1.0
    """Weight of the meta learner's own loss, added to that of the ensemble."""
    reduction_dropout: float = 0.5
    """Share of channels dropped after the reductions."""
    classifier_dropout: float = 0.1
    """Share of channels dropped before logits."""

    @property
    def multi_similarity(self) -> bool:
        """True if query and supports are compared at every layer."""
        return False

    @property
    def attention(self) -> bool:
        """True if supports' features are weighted by attention."""
        return False

    @property
    def squeeze(self) -> Squeeze:
        """The pixels of an object that multi-similarity compares."""
        return "mask"

    @property
    def similarity_bn(self) -> Literal["fixed", "batch"]:
        """Batch norm after the similarity maps."""
        return "fixed"

    @property
    def reduction(self) -> Literal["separate", "shared"]:
        """Reduction of the features of queries and supports."""
        return "separate"

    @property
    def attention_dropout(self) -> float:
        """Share of the attention's values that is dropped."""
        return 0.0

    @property
    def reference(self) -> bool:
        """True if bugs of the reference implementation are repeated."""
        return False

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
        """Return sentences on why a run over `episodes` episodes cannot reach the paper's figures."""
        if episodes >= 0.5 * PAPER_EPISODES:
            return []
        return [
            f"Trained on {episodes:,} episodes; the paper's are about {PAPER_EPISODES:,} on PASCAL and more on COCO: "
            "not to be compared with its figures."
        ]


@dataclass(frozen=True, kw_only=True)
class BAMConfig(EnsembleConfig):
    """BAM: the defaults are the paper's network (473 px, ResNet-50, ensemble with the base learner)."""

    name: Literal["bam"] = "bam"
    """The method."""
    prior_mask: Literal["masked", "unmasked", "off"] = "masked"
    """PFENet's prior mask. 'masked': block 4 sees a support whose block 3 is masked, as in PFENet and BAM. 'unmasked':
    it sees the whole support, and its output is masked, as in MSANet's reference implementation."""


@dataclass(frozen=True, kw_only=True)
class MSANetConfig(EnsembleConfig):
    """MSANet: the defaults compute the same as the reference implementation, without its bugs; docs/msanet.md."""

    name: Literal["msanet"] = "msanet"
    """The method."""
    multi_similarity: bool = True
    """Use the similarity of query and support at every layer of blocks 2 to 4."""
    attention: bool = True
    """Use the supports' features, weighted by attention to their object."""
    prior_mask: Literal["masked", "unmasked", "off"] = "unmasked"
    """PFENet's prior mask. 'unmasked': block 4 sees the whole support, and its output is masked, as in the reference
    implementation. 'masked': it sees a support whose block 3 is masked, as in PFENet, which the paper follows."""
    squeeze: Squeeze = "mask"
    """Pixels of an object that multi-similarity compares. 'mask': those with at least the mean share of the class, as
    in the reference implementation. 'feature': those whose masked feature is above its mean (Eq. 4)."""
    similarity_bn: Literal["fixed", "batch"] = "fixed"
    """Batch norm after the similarity maps. 'fixed': mean 0 and variance 1, as with the published option fix_bn.
    'batch': statistics of the batch of all ranks."""
    reduction: Literal["separate", "shared"] = "separate"
    """Reduction of the features of queries and supports. 'separate': by two convolutions, as in the reference
    implementation. 'shared': by one (Eq. 7)."""
    attention_dropout: float = 0.5
    """Share of the attention's values that is dropped before its sigmoid."""
    reference: bool = False
    """Repeat two bugs of the reference implementation: learned weights of shots stay in ascending order of psi,
    whichever shots they belong to, and a VGG's similarity at block 3 knows only the last shot."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.attention_dropout < 1:
            raise ConfigError(f"method.attention_dropout is {self.attention_dropout}: give a share from 0 to below 1")
        if self.reference and self.kshot != "learned":
            raise ConfigError(
                f"method.reference is true but method.kshot is {self.kshot}: the reference implementation has kshot "
                "learned, so set method.kshot to learned, or reference to false"
            )
