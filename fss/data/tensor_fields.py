"""The base of dataclasses of tensors, which are changed and moved together."""

from collections.abc import Callable
from copy import copy
from dataclasses import fields
from typing import Any, Self

from torch import Tensor


class TensorFields:
    """Base of a dataclass some of whose fields are tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, of any shape, by field."""
        this: Any = self  # a dataclass
        values = {field.name: getattr(self, field.name) for field in fields(this)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with `change` applied to every tensor, of any shape."""
        changed = copy(self)
        for name, tensor in self.tensors().items():
            setattr(changed, name, change(tensor))
        return changed
