"""ZeRO-1 and ZeRO-2 of DeepSpeed (Rajbhandari et al. 2020, section 5), behind the interface of a torch optimizer.

Every rank steps a slice of the flattened parameters and keeps the optimizer's state of that slice only. Checkpoints and
the loop do not see this: the state of a parameter is read and written whole, so a checkpoint has the same tensors under
the same names as one of DDP. No file of DeepSpeed's is written or unpickled, and a run can be resumed with another
number of ranks, another stage, or DDP.
"""

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

COUNTER = "step"  # the scalar among the state of torch's optimizers: the number of steps taken


class SteppedOptimizer(Protocol):
    """The part of `torch.optim.Optimizer` that training uses; both torch's optimizers and `ZeroOptimizer` have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups with their options."""
        ...

    @property
    def state(self) -> Any:
        """Parameter -> its state, tensors by name."""

    def step(self) -> object:
        """Update the parameters."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""


class ZeroOptimizer:
    """The optimizer of a DeepSpeed engine in float32, with as much of torch's interface as training uses.

    engine: DeepSpeed's, around the model. inner: the torch optimizer that it was given, which now steps the slices.
    """

    def __init__(self, engine: Any, inner: torch.optim.Optimizer) -> None:
        self._engine = engine
        self._inner = inner
        self.state = WholeState(engine.optimizer, inner)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the inner optimizer."""
        return self._inner.param_groups

    def step(self) -> None:
        """Take the engine's step, which also clips the gradient (if configured) and sets it to zero."""
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: the engine's step has done so."""

    def grad_norm(self) -> float:
        """Global norm, before clipping, of the gradient that the last step took."""
        return float(self._engine.get_global_grad_norm())


class WholeState:
    """The optimizer state of each parameter, put together from the slices of all ranks. Reading is collective."""

    def __init__(self, zero: Any, inner: torch.optim.Optimizer) -> None:
        self._zero = zero
        self._inner = inner

    def get(self, parameter: nn.Parameter, default: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the parameter's shape, and a scalar step counter, by name; `default` before the first step."""
        slices = self._inner.param_groups[0]["params"][0]  # every rank has a slice, though not one of each parameter
        state = {name: v for name, v in self._inner.state.get(slices, {}).items() if isinstance(v, Tensor)}
        sliced = cast(Any, parameter)  # DeepSpeed adds methods to it
        whole = {name: v.clone() if name == COUNTER else sliced.get_full_hp_param(name) for name, v in state.items()}
        return whole or default

    def __setitem__(self, parameter: nn.Parameter, tensors: dict[str, Tensor]) -> None:
        """Set the state of a parameter whose value was just loaded, and the value itself."""
        for group in self._inner.param_groups:
            for slices in group["params"]:
                state = self._inner.state[slices]
                for name, value in tensors.items():
                    if name == COUNTER:  # all slices have taken the same number of steps
                        state[name] = value.clone()
                    elif name not in state:
                        state[name] = torch.zeros_like(slices)
        tie_slices(self._zero)
        sliced = cast(Any, parameter)
        for name, value in tensors.items():
            if name != COUNTER:
                sliced.set_full_hp_param(value, name)
        sliced.set_full_hp_param(parameter.data)  # the engine steps a copy of its own


def tie_slices(zero: Any) -> None:
    """Tie the optimizer state of the slices to the parameters, as the first step of DeepSpeed's optimizer does.

    Private API, present up to DeepSpeed 0.19, the newest version tried.
    """
    zero._lazy_init_hp_params_optimizer_state()
