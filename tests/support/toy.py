"""A method small enough to follow by hand: it trains a layer and keeps a running copy of its weights."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fss.data.batch import Batch
from fss.methods.base import Method, StepContext


@dataclass(kw_only=True)
class ToyBatch(Batch):
    x: Tensor


class Toy(Method):
    def __init__(self, size: int = 4) -> None:
        self.trainable = nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size))
        self.non_trainable = nn.Module()
        self.non_trainable.register_buffer("copy", torch.zeros(size, size))

    @property
    def batch_spec(self) -> None:
        return None

    def loss(self, batch: ToyBatch, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        noise = (
            torch.randn(batch.x.shape).to(batch.x.device, non_blocking=True) * 0.1
        )  # draws from the rank's own generator, as dropout would
        loss = (self.trainable(batch.x + noise) - batch.x.flip(-1)).square().mean()
        return loss, {"toy/loss": loss.detach()}

    def after_step(self, context: StepContext) -> None:
        self.non_trainable.copy.lerp_(self.trainable[0].weight.detach(), 0.1)
        norm = self.trainable[1]
        context.collectives.mean_([norm.running_mean, norm.running_var])


def batches(start: int, rank: int, world_size: int, accumulate: int = 1, size: int = 4):
    """Endless micro-batches of this rank from step `start` on: the same global data at any number of ranks."""
    step = start
    while True:
        for micro in range(accumulate):
            generator = torch.Generator().manual_seed(step * 1000 + micro)
            x = torch.randn(12, size, generator=generator)[rank * 12 // world_size : (rank + 1) * 12 // world_size]
            yield ToyBatch(x=x, keys=[f"{step}-{rank}-{i}" for i in range(len(x))], replaced=[])
        step += 1
