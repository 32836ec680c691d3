"""The collectives that methods and layers may use, and their form on a single process.

Methods and layers receive an object with this interface. They never import `torch.distributed`, so the same code runs
on one process and on many. `fss.distributed.process_group` implements the interface over a process group.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Collectives(Protocol):
    """Communication with the other ranks. Every call is collective: all ranks make the same calls in the same order."""

    rank: int
    world_size: int
    ranks_per_node: int
    """How many ranks each node has, with numbers in a row; all of the job if nodes differ in it."""

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate [n, ...] of all ranks to [world_size * n, ...] in rank order. Same n everywhere; no gradient."""
        ...

    def start_all_gather(self, x: Tensor) -> Callable[[], Tensor]:
        """Start `all_gather` of x [n, ...]; the function returned waits for the result. Call it once."""
        ...

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Send the first send[0] rows of x [sum(send), ...] to rank 0 and so on; returns [sum(receive), ...]."""
        ...

    def start_all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Callable[[], Tensor]:
        """Start `all_to_all` of x [sum(send), ...]; the function returned waits for the result. Call it once."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum x of any shape over all ranks, element by element. Returns a new tensor of that shape; no gradient."""
        ...

    def all_gather_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        """`all_gather` of each [n, ...] of one dtype, in one collective."""
        ...

    def all_reduce_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        """`all_reduce` of each tensor [...] of one dtype, in one collective."""
        ...

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace every tensor, of any shape, by its mean over ranks, in place, in one collective."""
        ...

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Replace every tensor, of any shape, by that of rank 0, in place, in one collective."""
        ...


class SingleProcess:
    """`Collectives` of a single process: nothing is sent."""

    rank = 0
    world_size = 1
    ranks_per_node = 1

    def all_gather(self, x: Tensor) -> Tensor:
        return x.detach()

    def start_all_gather(self, x: Tensor) -> Callable[[], Tensor]:
        return lambda: x.detach()

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        return x

    def start_all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Callable[[], Tensor]:
        return lambda: x

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.detach().clone()

    def all_gather_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self.all_gather(x) for x in tensors]

    def all_reduce_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        return [self.all_reduce(x) for x in tensors]

    def mean_(self, tensors: list[Tensor]) -> None:
        pass

    def broadcast_(self, tensors: list[Tensor]) -> None:
        pass
