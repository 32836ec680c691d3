"""The optimizer and its learning rate, in global units: neither depends on how many ranks share the batch."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from fss.distributed.zero import SteppedOptimizer
from fss.errors import ConfigError, at_least
from fss.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum, as all the papers here use. adamw: Loshchilov and Hutter 2019."""
    epochs: float = 200
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps; replaces epochs if given."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    lr: float = 0.03
    """Learning rate of a global batch of reference_batch_size images; scaled linearly to data.batch."""
    reference_batch_size: int = 256
    """The global batch that lr is meant for."""
    schedule: Literal["cosine", "poly", "exponential", "constant"] = "cosine"
    """cosine: lr/2 (1 + cos(pi t)); poly: lr (1 - t)^power, with t the fraction of the run that is done; exponential:
    lr gamma^epoch."""
    power: float = 0.9
    """Exponent of 'poly'."""
    gamma: float = 0.95
    """Factor on the rate after each epoch of 'exponential'."""
    granularity: Literal["epoch", "step"] = "epoch"
    """How often the schedule moves; MoCo v2 moves it once an epoch."""
    warmup: float = 0
    """Epochs of linear warm-up, for global batches far above reference_batch_size."""
    momentum: float = 0.9
    """Momentum of 'sgd'."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of 'adamw': of the gradient and of its square."""
    weight_decay: float = 1e-4
    """Weight decay on all parameters, biases and BatchNorm included, as in MoCo v2; decoupled from the gradient in
    'adamw'."""
    clip_norm: float | None = None
    """Largest global norm of the gradient, averaged over ranks and micro-batches; a larger one is scaled down to it.
    null: no clipping."""

    def __post_init__(self) -> None:
        at_least("optim", self, epochs=1e-6, steps=1, accumulate=1, lr=0, reference_batch_size=1)
        at_least("optim", self, warmup=0, momentum=0, weight_decay=0, power=0)
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"optim.gamma is {self.gamma}: give a number above 0 and up to 1, such as 0.95")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas is {list(self.betas)}: give two numbers from 0 to below 1, as [0.9, 0.999]")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"optim.clip_norm is {self.clip_norm}: give a number above 0, or null for no clipping")


meta_optim = partial(OptimConfig, lr=0.025, reference_batch_size=4, schedule="poly", granularity="step")
"""The defaults of training on episodes: PFENet's recipe, which QGNet follows. 0.025 is the rate that reaches the
weights: the configuration of the reference implementation has 0.0025, and its loop multiplies that by 10."""

base_optim = partial(OptimConfig, epochs=100, lr=2.5e-4, reference_batch_size=12, schedule="poly", granularity="step")
"""The defaults of training a base learner: BAM's recipe for PASCAL-5i."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The epoch and the learning rate of step t. A pure function of t, so nothing needs saving."""

    config: OptimConfig
    images: int
    """Images in an epoch."""
    batch: int
    """Images in an optimizer step, over all ranks and micro-batches."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.steps or max(1, round(self.config.epochs * self.images / self.batch))

    def epoch(self, step: int) -> float:
        """Passes over the data before `step`."""
        return step * self.batch / self.images

    def lr(self, step: int) -> float:
        """Learning rate of `step`: linear scaling with the batch, then the schedule at the progress before the step.

        The reference implementations of 'poly' count the step itself as done: their rate is this one at step + 1, and
        their last step has rate 0.
        """
        c = self.config
        base = c.lr * self.batch / c.reference_batch_size
        epoch, epochs = self.epoch(step), self.epoch(self.steps)
        if epoch < c.warmup:
            return base * (epoch + self.epoch(1)) / (c.warmup + self.epoch(1))
        done = math.floor(epoch) if c.granularity == "epoch" else epoch
        match c.schedule:
            case "cosine":
                return base / 2 * (1 + math.cos(math.pi * done / epochs))
            case "poly":
                return base * (1 - done / epochs) ** c.power
            case "exponential":
                return base * c.gamma**done
            case "constant":
                return base


def build_optimizer(method: Method, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over the method's parameter groups; fused, which takes half the time of the loop on CPU."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            method.param_groups(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.SGD(
        method.param_groups(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )


def set_learning_rate(optimizer: SteppedOptimizer, lr: float) -> None:
    """Set the learning rate of every group: `lr` times the group's 'lr_scale', 1 where it has none."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
