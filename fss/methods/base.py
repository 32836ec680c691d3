"""The contract between a method and everything that runs it.

A method is pure torch: it receives its collectives (`Peers`), never imports them, and does not care whether it runs on
one process or on a thousand.
"""

import abc
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

Features = dict[str, Tensor]
"""What a method keeps of an image, or of a support image and its mask: tensors by name, each with a batch dimension of
1. The evaluation stores them and hands them back as they are."""

Report = dict[str, Tensor]
"""Scalars to log, detached, still on the device: reading one is a synchronisation, so only the logger does it."""


class Peers(Protocol):
    """The other ranks, as far as a method may know them. Every call is collective, in one order on all ranks."""

    rank: int
    world: int

    def gather(self, x: Tensor) -> Tensor:
        """[n, ...] -> [world * n, ...] in rank order; same n on every rank; carries no gradient."""

    def exchange(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Rows of x [sum(send), ...]: send[r] consecutive rows go to rank r; gives [sum(receive), ...] by rank."""

    def sum(self, x: Tensor) -> Tensor:
        """The element-wise sum over ranks, as a new tensor; carries no gradient."""

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its mean over ranks, in place, in one collective."""

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by rank 0's, in place, in one collective."""


class Alone:
    """`Peers` of a single process."""

    rank = 0
    world = 1

    def gather(self, x: Tensor) -> Tensor:
        return x.detach()

    def exchange(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        return x

    def sum(self, x: Tensor) -> Tensor:
        return x.detach().clone()

    def mean_(self, tensors: list[Tensor]) -> None:
        pass

    def broadcast_(self, tensors: list[Tensor]) -> None:
        pass


class Method(abc.ABC):
    """What the engine trains, saves, exports and evaluates without knowing which one it is.

    `trained` holds everything that has gradients and nothing else; it is all that DDP or DeepSpeed wraps. `replica`
    holds what must survive a restart and be equal on all ranks but has no gradient (momentum encoders, queues).
    """

    Config: ClassVar[type]
    """Frozen dataclass; every field has a docstring and becomes a command line option."""
    learns: ClassVar[bool] = True
    """Whether there is anything to train; without, `trained` is empty and `loss` raises TypeError."""
    encodes_queries: ClassVar[bool] = False
    """Whether a query needs more than `encode` gives: then `encode_query` is called, too."""
    probable: ClassVar[bool] = True
    """Whether the logits of `predict` are those of probabilities; else only their sign means the class."""
    ablations: ClassVar[tuple[str, ...]] = ()
    """Options which, where they are not what they are by default, make another system than the paper's main one."""

    trained: nn.Module
    replica: nn.Module

    @property
    @abc.abstractmethod
    def consumes(self) -> Any:
        """The spec of the batches that `loss` takes (see fss.data.batch); its type decides which loader feeds it."""

    @abc.abstractmethod
    def loss(self, batch: Any, peers: Peers, step: int) -> tuple[Tensor, Report]:
        """Scalar loss of one (micro-)batch at optimizer step `step`, with gradient to `trained`, and what to log."""

    @abc.abstractmethod
    def after_step(self, peers: Peers) -> None:
        """Called once after every optimizer step: momentum update, enqueue, running statistics.

        Leaves `trained` (buffers included) and `replica` equal on all ranks.
        """

    def param_groups(self) -> list[dict]:
        """Optimizer parameter groups; a group may carry 'lr_scale'."""
        return [{"params": [p for p in self.trained.parameters() if p.requires_grad]}]

    def briefing(self, images: int, global_batch: int) -> list[str]:
        """Sentences for the start of a run: the band where the loss should lie, and what of this set-up is unwise."""
        return []

    def warnings(self, step: int, report: dict[str, float]) -> list[str]:
        """Sentences about what looks wrong in a logged report."""
        return []

    def chance(self) -> dict[str, float]:
        """Name of a logged value -> what guessing gives."""
        return {}

    def distributions(self) -> dict[str, Tensor]:
        """What to look at as histograms, values [n] by name. Asked for on one rank, after a step that is logged."""
        return {}

    def variant(self) -> str:
        """What makes this another system than the paper's main one: options and values, "" where nothing does."""
        given = [(option.name, getattr(self.config, option.name), option.default) for option in fields(self.Config)]
        return ", ".join(f"{name} {value}" for name, value, usual in given if name in self.ablations and value != usual)

    def cautions(self, images_seen: int) -> list[str]:
        """Sentences on what keeps a run over `images_seen` images from being compared with the paper's figures."""
        return []

    def teach(self, classes: Mapping[int, str], peers: Peers) -> None:
        """Called once, before anything is trained on label maps: the classes to learn, id -> name by ascending id.

        peers: those that every batch will be shared with.
        """
        raise TypeError(f"{type(self).__name__} learns no classes by name")

    def segment(self, image: Tensor) -> Tensor:
        """Logits [B, 1 + n, h, w] of the background and the n classes that were taught, for standardised images."""
        raise TypeError(f"{type(self).__name__} knows no classes by name")

    def learnt(self) -> dict[int, str]:
        """Class id -> name of the classes that a part of this method was trained on beforehand, with their labels.

        None of them may be novel; where there are any, they must be the base classes that training may learn from.
        """
        return {}

    def start_from(self, path: Path) -> list[str]:
        """Warm start: take over the weights in a file; gives sentences that say what was taken and what starts anew.

        Raises WeightsError where the file does not fit.
        """
        raise TypeError(f"{type(self).__name__} starts from no file")

    def compile(self) -> None:
        """Have torch.compile work on what takes the time."""
        raise TypeError(f"{type(self).__name__} has nothing to compile")

    def embed(self, image: Tensor) -> Tensor:
        """One descriptor per image, uint8 [B, 3, H, W] -> [B, C], as a frozen use of this method computes it."""
        raise TypeError(f"{type(self).__name__} has no descriptor for a whole image")

    def dense(self, image: Tensor) -> Tensor:
        """The feature map that a frozen use of this method works with, uint8 [B, 3, H, W] -> [B, C, h, w]."""
        raise TypeError(f"{type(self).__name__} has no feature maps")

    def encode(self, image: Tensor) -> Features:
        """What is needed of an image in an episode, as query or as support, whatever the class.

        image: float32 [1, 3, S, S], standardised, S such that `Config(size=S)` takes it. Computed once per image and
        stored by the evaluation, so it holds nothing that `describe` and `predict` do not need.
        """
        raise TypeError(f"{type(self).__name__} cannot be evaluated on episodes")

    def encode_query(self, image: Tensor) -> Features:
        """What is needed of an image only where it is the query; `predict` gets it together with what `encode` gave.

        Stored like that. Only called of a method that `encodes_queries`.
        """
        raise TypeError(f"{type(self).__name__} needs no more of a query than of a support")

    def describe(self, features: Features, mask: Tensor) -> Features:
        """What a support image says about the class of its mask: uint8 [1, S, S], 1 the class, 0 not, 255 unknown.

        Stored by the evaluation per image and class.
        """
        raise TypeError(f"{type(self).__name__} cannot be evaluated on episodes")

    def predict(self, query: Features, supports: list[Features]) -> Tensor:
        """Logits [1, 2, S, S] (background, class) of a query given K >= 1 descriptions from `describe`."""
        raise TypeError(f"{type(self).__name__} cannot be evaluated on episodes")

    def remarks(self) -> tuple[str, ...]:
        """What was unusual about the last prediction, a few words each; an evaluation counts equal ones."""
        return ()

    def maps(self, query: Features, supports: list[Features]) -> dict[str, Tensor]:
        """Maps [h, w] in 0..1 by name that show people how a prediction came about; for the report and for recall.

        query: from `encode`.
        """
        return {}

    def export(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The weights that other jobs start from (public names), and what is known of them."""
        raise TypeError(f"{type(self).__name__} exports nothing")

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Self:
        """The method whose `export` this is, ready to be evaluated; no other file is needed.

        Raises WeightsError or ConfigError where tensors and header do not fit each other or this version.
        """
        raise TypeError(f"{cls.__name__} cannot be restored from a file")
