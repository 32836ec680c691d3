"""The contract between a method and everything that trains, evaluates and saves it.

A method is pure torch. It receives its collectives (`fss.collectives`) and never imports them, so it runs unchanged on
one process or on many. There are three kinds, by what they are trained on or asked for: `ViewMethod` (augmented views
of images), `LabelMethod` (label maps of known classes) and `EpisodeMethod` (episodes of a query and K supports).
"""

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from fss.collectives import Collectives, SingleProcess
from fss.data.batch import BatchSpec
from fss.nn.exports import ExportHeader

Features = dict[str, Tensor]
"""The features of an image, or the description of a support image and its mask: tensors by name, each with a batch
dimension of 1. The evaluation caches them and passes them back unchanged."""

Report = dict[str, Tensor]
"""Scalars to log, detached, still on the device: reading one waits for the device, so only the logger does it."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The options that every method has."""

    name: str
    """The method."""


@dataclass(frozen=True)
class StepContext:
    """The place of a call in a training run."""

    collectives: Collectives = field(default_factory=SingleProcess)
    """Communication with the other ranks."""
    step: int = 0
    """The optimizer step, from 0."""
    total_steps: int = 1
    """Optimizer steps of the whole run."""
    logged: bool = True
    """Whether the step is logged. If not, a report may leave out what costs more than it already has."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A method's segmentation of a query, over its square of S x S pixels. Either `logits` or `mask` is given.

    Raises ValueError if both or none are given.
    """

    logits: Tensor | None = None
    """Float [1, 2, S, S]: background, class."""
    mask: Tensor | None = None
    """Bool [S, S]: true where the class is, from a method that decides without logits."""
    score: Tensor | None = None
    """With `mask`: how similar the query is to the supports, a scalar above 0, to choose between several classes."""
    flags: tuple[str, ...] = ()
    """Unusual circumstances of this prediction, a few words each; an evaluation counts equal ones."""

    def __post_init__(self) -> None:
        if (self.logits is None) == (self.mask is None):
            raise ValueError("a Prediction takes either logits or a mask")

    @property
    def margin(self) -> Tensor:
        """The class's lead over the background, float32 [1, 1, S, S]; above 0 where the class is predicted.

        The difference of the logits; of a mask plus or minus its `score`, 1 if there is none.
        """
        if self.logits is not None:
            return (self.logits[:, 1:] - self.logits[:, :1]).float()
        assert self.mask is not None
        margin = 2.0 * self.mask - 1
        return (margin if self.score is None else self.score * margin)[None, None]

    @property
    def finite(self) -> Tensor:
        """True if no logit is NaN or infinite, a bool scalar on the device: the host waits if it reads it."""
        values = self.mask if self.logits is None else self.logits
        assert values is not None  # see __post_init__
        return torch.isfinite(values).all()


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class Method(abc.ABC, Generic[ConfigT]):
    """A system that is trained, saved, exported and evaluated through this interface alone.

    `trainable` holds everything that has gradients and nothing else; it is all that DDP or DeepSpeed wraps.
    `non_trainable` holds what has no gradient but must survive a restart and be equal on all ranks: momentum encoders,
    queues, frozen networks.
    """

    Config: ClassVar[type[MethodConfig]]
    """Frozen dataclass; every field has a docstring and becomes a command line option."""
    requires_training: ClassVar[bool] = True
    """Whether there is anything to train. If not, `trainable` is empty and `loss` raises TypeError."""
    ablations: ClassVar[tuple[str, ...]] = ()
    """Options that make another system than the paper's main one, unless they have their default value."""

    config: ConfigT
    trainable: nn.ModuleDict
    non_trainable: nn.ModuleDict

    @abc.abstractmethod
    def __init__(self, config: ConfigT) -> None:
        """Build the networks. Raises ConfigError or WeightsError if a file of weights is missing or does not fit."""

    @property
    @abc.abstractmethod
    def batch_spec(self) -> BatchSpec:
        """The batches that `loss` takes (see fss.data.batch); the type of the spec selects the data set."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts of `non_trainable` that no step changes: ranks compare them at the start of a run only."""
        return ()

    @abc.abstractmethod
    def loss(self, batch: Any, context: StepContext) -> tuple[Tensor, Report]:
        """Compute the scalar loss of one (micro-)batch, with gradient to `trainable`, and the scalars to log.

        Nothing in it reads a value of a tensor on another device than a CPU: the host would wait for the device. batch:
        of the type that belongs to `batch_spec`. Collective. Raises TypeError if there is nothing to train.
        """

    def after_step(self, context: StepContext) -> None:
        """Update what has no gradient after an optimizer step: momentum encoder, queues, running statistics.

        Leaves `trainable` (buffers included) and `non_trainable` equal on all ranks. Collective.
        """

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; a group may have an 'lr_scale', a factor on the learning rate."""
        return [{"params": [p for p in self.trainable.parameters() if p.requires_grad]}]

    def startup_messages(self, images: int, batch: int) -> list[str]:
        """Return sentences for the start of a run over `images` images, `batch` an optimizer step over all ranks.

        They name the range in which the loss should lie, and settings that are unwise for this set.
        """
        return []

    def warnings(self, step: int, report: dict[str, float]) -> list[str]:
        """Return sentences about what looks wrong in the logged report of a step."""
        return []

    def chance_levels(self) -> dict[str, float]:
        """Return the value that guessing gives, by the name of the logged value."""
        return {}

    def distributions(self) -> dict[str, Tensor]:
        """Return values [n] by name, to be logged as histograms. Called on one rank, after a step that is logged."""
        return {}

    def ablation(self) -> str:
        """Name the options that make this another system than the paper's main one, with values; "" if none do."""
        values = [(option.name, getattr(self.config, option.name), option.default) for option in fields(self.Config)]
        return ", ".join(
            f"{name} {value}" for name, value, default in values if name in self.ablations and value != default
        )

    def caveats(self, images_seen: int) -> list[str]:
        """Return sentences on why a run over `images_seen` images must not be compared with the paper's figures."""
        return []

    def seen_classes(self) -> dict[int, str]:
        """Return the classes on whose labels a part of this method was trained before, id -> name.

        None of them may be novel. If there are any, they must be the base classes that training may learn from.
        """
        return {}

    def init_from(self, path: Path) -> list[str]:
        """Load the weights of a file as a warm start. Returns sentences on what was loaded and what starts anew.

        Raises WeightsError if the file does not fit, TypeError if this method cannot start from a file.
        """
        raise TypeError(f"{type(self).__name__} starts from no file")

    def compile(self) -> None:
        """Compile the parts that take the time with torch.compile. Raises TypeError if there are none."""
        raise TypeError(f"{type(self).__name__} has nothing to compile")

    def export(self) -> tuple[dict[str, Tensor], ExportHeader]:
        """Return the weights that other jobs start from, under public names, and the header.

        Raises TypeError if this method exports nothing.
        """
        raise TypeError(f"{type(self).__name__} exports nothing")


class ViewMethod(Method[ConfigT]):
    """A method that is pretrained on augmented views and used as a frozen feature extractor."""

    @abc.abstractmethod
    def embed(self, image: Tensor) -> Tensor:
        """Compute one descriptor an image, uint8 [B, 3, H, W] -> [B, C], as a frozen use of this method does."""

    @abc.abstractmethod
    def dense(self, image: Tensor) -> Tensor:
        """Compute the feature map of a frozen use of this method, uint8 [B, 3, H, W] -> [B, C, h, w]."""


class LabelMethod(Method[ConfigT]):
    """A method that segments classes known by name and is trained on their label maps."""

    @abc.abstractmethod
    def set_classes(self, classes: Mapping[int, str], collectives: Collectives) -> None:
        """Set the classes to train on, id -> name by ascending id. Called once, before training.

        collectives: those of the ranks that share every batch.
        """

    @abc.abstractmethod
    def segment(self, image: Tensor) -> Tensor:
        """Compute logits [B, 1 + n, h, w] of the background and the n classes that were set.

        image: float32 [B, 3, S, S], normalized.
        """


class EpisodeMethodConfig(MethodConfig):
    """The options of a method that is evaluated on episodes."""

    size: int
    """Side of the images that the method sees, pixels."""


EpisodeConfigT = TypeVar("EpisodeConfigT", bound=EpisodeMethodConfig)


class EpisodeMethod(Method[EpisodeConfigT]):
    """A method that segments a query, given K support images with masks of a class.

    The order of calls is that of `fss.evaluate.predictor.EpisodePredictor`: `encode` for every image, `encode_query`
    for the query if `needs_query_encoding`, `encode_supports` for the supports, then `predict`.
    """

    needs_query_encoding: bool = False
    """Whether a query needs more than `encode` gives: then `encode_query` is called, too."""
    has_probabilities: ClassVar[bool] = True
    """Whether the logits of a prediction are those of probabilities; if not, only their sign has a meaning."""

    @abc.abstractmethod
    def encode(self, image: Tensor) -> Features:
        """Compute what an episode needs of an image, as query or as support, whatever the class.

        image: float32 [1, 3, S, S], normalized, S such that `Config(size=S)` takes it. Computed once an image and
        cached by the evaluation, so it holds nothing that `encode_support` and `predict` do not need.
        """

    def encode_query(self, image: Tensor) -> Features:
        """Compute what is needed of an image only as the query; `predict` gets it together with `encode`'s.

        image: float32 [1, 3, S, S], as for `encode`. Cached likewise. Called only if `needs_query_encoding`. Raises
        TypeError if the method has no more features of a query.
        """
        raise TypeError(f"{type(self).__name__} needs no more of a query than of a support")

    @abc.abstractmethod
    def encode_support(self, features: Features, mask: Tensor) -> Features:
        """Compute the description of the class in a support, from `encode`'s features and its mask.

        mask: uint8 [1, S, S], 1 the class, 0 not, 255 unknown. Cached by image and class.
        """

    def encode_supports(self, supports: Iterable[tuple[Features, Tensor]]) -> list[Features]:
        """Compute `encode_support` of several supports, each of features and mask [1, S, S], taken one by one.

        Override it where `encode_support` reads a value from the device, to read those of all supports by one copy.
        """
        return [self.encode_support(features, mask) for features, mask in supports]

    @abc.abstractmethod
    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        """Segment a query, given K >= 1 descriptions from `encode_support`."""

    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        """Return maps [h, w] in 0..1 by name that explain a prediction, for reports and for recall.

        query: from `encode`.
        """
        return {}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], header: ExportHeader) -> Self:
        """Rebuild the method from its export, ready to be evaluated; no other file is needed.

        Raises WeightsError or ConfigError if tensors and header do not fit each other or this version.
        """
        raise TypeError(f"{cls.__name__} cannot be restored from a file")
