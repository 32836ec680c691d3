"""The collectives that methods receive, over torch.distributed, and what only a process group's private API gives."""

import datetime
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from fss.distributed.heartbeat import Store


class ProcessGroupCollectives:
    """`fss.collectives.Collectives` over the default process group.

    on_enter: called before each collective. ranks_per_node: see there; None: all ranks.
    """

    def __init__(self, on_enter: Callable[[], None] = lambda: None, ranks_per_node: int | None = None) -> None:
        self._on_enter = on_enter
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.ranks_per_node = ranks_per_node or self.world_size

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate [n, ...] of all ranks to [world_size * n, ...], in rank order."""
        return self.start_all_gather(x)()

    def start_all_gather(self, x: Tensor) -> Callable[[], Tensor]:
        """Start `all_gather` of x [n, ...]; the function returned has the device wait, on CUDA not the host."""
        self._on_enter()
        out = self._gathered(x)
        return self._finish(dist.all_gather_into_tensor(out, x.detach().contiguous(), async_op=True), out)

    def all_gather_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        """`all_gather` of each [n, ...] of one dtype, in one collective. Private API, present up to torch 2.15."""
        self._on_enter()
        gathered = [self._gathered(x) for x in tensors]
        with dist.distributed_c10d._coalescing_manager():
            for out, x in zip(gathered, tensors, strict=True):
                dist.all_gather_into_tensor(out, x.detach().contiguous())
        return gathered

    def _gathered(self, x: Tensor) -> Tensor:
        return x.new_empty((self.world_size * x.shape[0], *x.shape[1:]))

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Send the first send[0] rows of x to rank 0 and so on; returns [sum(receive), ...]."""
        return self.start_all_to_all(x, send, receive)()

    def start_all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Callable[[], Tensor]:
        """Start `all_to_all` of x [sum(send), ...]; the function returned has the device wait, on CUDA not the host."""
        self._on_enter()
        x = x.detach().contiguous()
        out = x.new_empty((sum(receive), *x.shape[1:]))
        return self._finish(dist.all_to_all_single(out, x, receive, send, async_op=True), out)

    @staticmethod
    def _finish(work: dist.Work | None, out: Tensor) -> Callable[[], Tensor]:
        assert work is not None  # so it is for a rank outside the group, and every rank is in the default one

        def finish() -> Tensor:
            work.wait()
            return out

        return finish

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum x, of any shape, element by element over all ranks."""
        self._on_enter()
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    def all_reduce_coalesced(self, tensors: list[Tensor]) -> list[Tensor]:
        """`all_reduce` of each tensor [...] of one dtype, in one collective. Private API, present up to torch 2.15."""
        self._on_enter()
        totals = [x.detach().clone() for x in tensors]
        with dist.distributed_c10d._coalescing_manager():
            for total in totals:
                dist.all_reduce(total)
        return totals

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace every tensor, of any shape, by its mean over ranks, in place; computed in float32."""
        self._flat(tensors, lambda flat: dist.all_reduce(flat), 1 / self.world_size)

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Replace every tensor, of any shape, by that of rank 0, in place; sent as float32."""
        self._flat(tensors, lambda flat: dist.broadcast(flat, src=0), 1)

    def _flat(self, tensors: list[Tensor], collective: Callable[[Tensor], object], scale: float) -> None:
        if not tensors:
            return
        self._on_enter()
        flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
        collective(flat)
        parts = (flat * scale).split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def gloo_group(timeout: datetime.timedelta) -> dist.ProcessGroup:
    """A new group of all ranks that communicate over the CPU."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # a number on ranks that are not in it, and all are
    return group


def default_store() -> Store:
    """The key-value store of the default process group. Private API, present up to torch 2.15, the newest tried."""
    return dist.distributed_c10d._get_default_store()


def set_timeout(group: dist.ProcessGroup, device: torch.device, timeout: datetime.timedelta) -> None:
    """Set the time limit of later collectives of `group`. Private API, present up to torch 2.15, the newest tried.

    device: on which the collectives are.
    """
    group._get_backend(device)._set_default_timeout(timeout)
