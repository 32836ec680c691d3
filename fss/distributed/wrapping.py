"""The module that DDP or DeepSpeed wraps, and the memory layout that they need."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fss.collectives import Collectives
from fss.methods.base import Method, Report, StepContext


class LossForward(nn.Module):
    """The one forward that DDP or DeepSpeed sees: it owns the trainable parameters and calls the method's loss."""

    def __init__(
        self,
        method: Method,
        collectives: Collectives,
        autocast: Callable[[], AbstractContextManager],
        total_steps: int,
    ) -> None:
        super().__init__()
        self.trainable = method.trainable
        self._autocast = autocast
        # A closure, so that `non_trainable` is not registered as a submodule.
        self._loss = lambda batch, step, logged: method.loss(batch, StepContext(collectives, step, total_steps, logged))

    def forward(self, batch: Any, step: int, logged: bool = True) -> tuple[Tensor, Report]:
        """The loss of a micro-batch and the scalars to log, in the precision of the job."""
        with self._autocast():
            return self._loss(batch, step, logged)


def make_contiguous(module: nn.Module) -> None:
    """Give all parameters and buffers the default memory format, in place: DeepSpeed sends them as rows of bytes."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


def match_weight_strides(module: nn.Module) -> None:
    """Give the gradients of 1x1 convolutions the strides of their weights, as DDP requires.

    If a kernel is one pixel, several strides describe the same order of numbers, and torch's convolutions return any
    of them.
    """
    for weight in module.parameters():
        if weight.requires_grad and weight.shape[2:] == (1, 1):
            weight.register_hook(partial(_restride, strides=weight.stride()))


def _restride(gradient: Tensor, strides: tuple[int, ...]) -> Tensor:
    return gradient.flatten(1).contiguous().as_strided(gradient.shape, strides)
