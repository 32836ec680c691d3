"""The collectives that methods receive, over torch.distributed."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessGroupCollectives:
    """`fss.collectives.Collectives` over the default process group. meet: called before each collective."""

    def __init__(self, meet: Callable[[], None] = lambda: None) -> None:
        self._meet = meet
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_gather(self, x: Tensor) -> Tensor:
        self._meet()
        x = x.detach().contiguous()
        out = x.new_empty((self.world_size * x.shape[0], *x.shape[1:]))
        dist.all_gather_into_tensor(out, x)
        return out

    def all_to_all(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        self._meet()
        out = x.new_empty((sum(receive), *x.shape[1:]))
        dist.all_to_all_single(out, x.detach().contiguous(), receive, send)
        return out

    def all_reduce(self, x: Tensor) -> Tensor:
        self._meet()
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    def mean_(self, tensors: list[Tensor]) -> None:
        self._flat(tensors, lambda flat: dist.all_reduce(flat), 1 / self.world_size)

    def broadcast_(self, tensors: list[Tensor]) -> None:
        self._flat(tensors, lambda flat: dist.broadcast(flat, src=0), 1)

    def _flat(self, tensors: list[Tensor], collective: Callable[[Tensor], object], scale: float) -> None:
        if not tensors:
            return
        self._meet()
        flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
        collective(flat)
        flat = flat * scale
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
