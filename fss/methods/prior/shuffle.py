"""ShuffleBN (He et al. 2020, section 3.3): keys are computed in other groups of the batch than queries.

Batch statistics are a signature of the images they were computed from. If a query and its key were computed in the same
group, the network could recognize the pair by them. Images are exchanged by all-to-all: each rank sends and receives
about as many bytes as its own batch has, for any number of ranks.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fss.collectives import Collectives
from fss.errors import ConfigError
from fss.nn.transfer import to_device

Permute = Callable[[int, int, int], np.ndarray]
"""(optimizer step, micro-batch, n) -> a permutation of n rows, the same on every rank."""


class SeededPermutation:
    """The permutations of a run: a pure function of (seed, optimizer step, micro-batch)."""

    def __init__(self, seed: int):
        self.seed = seed

    def __call__(self, step: int, micro: int, rows: int) -> np.ndarray:
        return np.random.default_rng((self.seed, step, micro)).permutation(rows)


def permute_ranks(
    draw: Callable[[int], np.ndarray], n: int, collectives: Collectives, among: Literal["all", "node"]
) -> np.ndarray:
    """Permute the rows of all ranks, n each, among all of them or within every node: integers [W n].

    draw: number of rows -> a permutation of them. Raises ConfigError if a node is a single rank, within which a shuffle
    has no effect.
    """
    if among == "all" or collectives.world_size == 1:
        return draw(collectives.world_size * n)
    if collectives.ranks_per_node == 1:
        raise ConfigError(
            "method.shuffle_among is node, but every node has one rank, within which a shuffle has no effect: leave it "
            "at all, or start several ranks a node"
        )
    rows = collectives.ranks_per_node * n
    nodes = np.arange(0, collectives.world_size * n, rows)
    return (nodes[:, None] + draw(rows)).reshape(-1)


class Shuffle:
    """One shuffle of the rows of all ranks, in rank order: place p takes row `permutation[p]`.

    The W * n places belong to the ranks in order, n each, like the rows. Everything that `scatter` moved must come back
    through `give_back` or `in_order_of_rows`: in the order of places, keys would be paired with the wrong queries.
    """

    def __init__(self, permutation: np.ndarray, collectives: Collectives, device: torch.device):
        """device: of the rows."""
        self.collectives = collectives
        n = len(permutation) // collectives.world_size
        home, place_rank = permutation // n, np.arange(len(permutation)) // n  # [W n] source, target
        mine = np.flatnonzero(home == collectives.rank)  # the places of this rank's rows, by receiving rank
        here = slice(collectives.rank * n, (collectives.rank + 1) * n)
        sources = home[here]  # [n] the ranks that send the rows of this rank's places
        self._send = np.bincount(place_rank[mine], minlength=collectives.world_size).tolist()
        self._receive = np.bincount(sources, minlength=collectives.world_size).tolist()
        arrived = np.argsort(np.argsort(sources, kind="stable"))  # arrivals come by rank
        returning = np.argsort(sources, kind="stable")  # by the rank that they return to, which gets them by place
        tables = (permutation[mine] % n, arrived, returning, np.argsort(permutation[mine] % n), np.argsort(permutation))
        self._leaving, self._arrived, self._returning, self._returned, self._undo = on_device(device, *tables)

    def scatter(self, x: Tensor) -> Callable[[], Tensor]:
        """Start to exchange this rank's rows [n, ...] for the rows of its places. Collective.

        The function that is returned waits for the exchange and returns the rows [n, ...].
        """
        finish = self.collectives.start_all_to_all(x[self._leaving], self._send, self._receive)
        return lambda: finish()[self._arrived]

    def give_back(self, x: Tensor) -> Callable[[], Tensor]:
        """Start to return what was computed for this rank's places, [n, ...], to the ranks of the rows. Collective.

        The function that is returned waits, and returns what belongs to this rank's rows, [n, ...].
        """
        finish = self.collectives.start_all_to_all(x[self._returning], self._receive, self._send)
        return lambda: finish()[self._returned]

    def in_order_of_rows(self, gathered: Tensor) -> Tensor:
        """Reorder what all ranks computed for their places, [W n, ...] in order of places."""
        return gathered[self._undo]


def on_device(device: torch.device, *tables: np.ndarray) -> tuple[Tensor, ...]:
    """Copy tables of indices, int64 [n] each, to a device in one copy for which the host does not wait."""
    flat = to_device(torch.from_numpy(np.concatenate(tables)), device)
    return flat.split([len(table) for table in tables])
