"""ZeRO-1 and ZeRO-2 of DeepSpeed, seen as a torch optimizer.

Every rank steps a slice of the flattened parameters and keeps the optimizer's state of that slice alone. Checkpoints
and the loop see none of it: the state of a parameter is read and written whole, so a checkpoint holds the same tensors
under the same names as one of DDP, nothing of DeepSpeed's own files is ever written or unpickled, and a run goes on
under another number of ranks, another stage, or DDP.
"""

from typing import Any

import torch
from torch import Tensor, nn


class ZeroOptimizer:
    """The optimizer of a DeepSpeed engine in float32, with as much of torch's interface as the engine here uses.

    engine: what DeepSpeed made of the model. inner: the torch optimizer that it was given, which now steps the slices.
    """

    def __init__(self, engine: Any, inner: torch.optim.Optimizer) -> None:
        self._engine = engine
        self._inner = inner
        self.state = WholeState(engine.optimizer, inner)

    @property
    def param_groups(self) -> list[dict]:
        return self._inner.param_groups

    def step(self) -> None:
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the engine's step has done so."""

    def grad_norm(self) -> float:
        """Of the gradient that the last step took, over all ranks."""
        return float(self._engine.get_global_grad_norm())


class WholeState:
    """The state of each parameter, put together of the slices that ranks hold. Reading is collective."""

    def __init__(self, zero: Any, inner: torch.optim.Optimizer) -> None:
        self._zero = zero
        self._inner = inner

    def get(self, parameter: nn.Parameter, default: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the parameter's shape, by name; `default` before the first step."""
        slices = self._inner.param_groups[0]["params"][0]  # every rank has a slice, though not one of each parameter
        names = [name for name, value in self._inner.state.get(slices, {}).items() if isinstance(value, Tensor)]
        return {name: parameter.get_full_hp_param(name) for name in names} or default

    def __setitem__(self, parameter: nn.Parameter, tensors: dict[str, Tensor]) -> None:
        """Take over the state of a parameter whose value was just loaded, and the value itself."""
        for group in self._inner.param_groups:
            for slices in group["params"]:
                for name in tensors.keys() - self._inner.state[slices].keys():
                    self._inner.state[slices][name] = torch.zeros_like(slices)
        self._zero._lazy_init_hp_params_optimizer_state()  # as its first step does: ties the slices to the parameters
        for name, value in tensors.items():
            parameter.set_full_hp_param(value, name)
        parameter.set_full_hp_param(parameter.data)  # the engine steps a copy of its own
