"""Descriptions of supports that keep the vectors at the object's positions.

The size of such a description depends on the mask, so the host has to wait for a number. It waits once for all supports
of an episode.
"""

import abc
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from torch import Tensor

from fss.methods.base import Features
from fss.methods.frozen_backbone import FrozenBackboneConfig, FrozenBackboneMethod
from fss.nn.similarity import true_indices


class SupportVectors(NamedTuple):
    """A support before the positions of its object are selected."""

    description: Features
    """What does not depend on their number."""
    vectors: Features
    """Vectors of all N positions by name, [1, ..., N, C]."""
    inside: dict[str, Tensor]
    """Name of vectors that the description keeps -> at which positions, bool [N]."""


def select_objects(supports: Iterable[SupportVectors]) -> list[Features]:
    """Compute the descriptions of supports, with the vectors [1, ..., n, C] at the n positions of each object.

    On a CPU a support is finished before the next is taken, so that only one has all its vectors in memory. On another
    device all are taken, and the host waits once for all numbers n.
    """
    described: list[Features] = []
    remaining = iter(supports)
    for support in remaining:
        on_host = all(mask.device.type == "cpu" for mask in support.inside.values())
        together = [support] if on_host else [support, *remaining]
        indices = iter(true_indices([mask for one in together for mask in one.inside.values()]))
        for one in together:
            vectors = {name: one.vectors[name][..., next(indices), :] for name in one.inside}
            described.append(one.description | vectors)
    return described


ConfigT = TypeVar("ConfigT", bound=FrozenBackboneConfig)


class SupportVectorsMethod(FrozenBackboneMethod[ConfigT]):
    """A method whose descriptions of supports keep vectors at the object's positions."""

    @abc.abstractmethod
    def support_vectors(self, features: Features, mask: Tensor) -> SupportVectors:
        """Compute a support's description up to the selection, from `encode`'s features and its mask uint8 [1, S, S].

        The host does not wait.
        """

    def encode_support(self, features: Features, mask: Tensor) -> Features:
        return self.encode_supports([(features, mask)])[0]

    def encode_supports(self, supports: Iterable[tuple[Features, Tensor]]) -> list[Features]:
        with self._evaluation():
            return select_objects(self.support_vectors(features, mask) for features, mask in supports)
