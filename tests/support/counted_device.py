"""A second device without hardware: it counts the kernels that a program launches and the times that its host waits.

Its tensors name the device `counted` and keep their values in ordinary memory, so that results can be compared. Like
CUDA it refuses to mix its tensors with those of the CPU. What it counts holds on CUDA, too:

* A wait: reading a value, a selection whose size depends on values (`nonzero`, indexing by bool), a blocking copy.
* A kernel: every operation that is neither a view nor an allocation; an operation on a list of tensors is one.

Use it through the fixture `counted` (tests/conftest.py), which lets through what wrapped tensors cannot do.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.support.cuda_only import CUDA_ONLY

NAME = "counted"
READS_SIZE = {
    f"aten.{name}.default"
    for name in (
        *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount"),
        *("_unique2", "unique_consecutive", "unique_dim"),
    )
}
"""Operations for which the host waits until a value, or the size of the result, is known."""
NO_KERNEL = tuple(
    f"{name}"
    for name in (
        *("aten.detach", "aten.empty", "aten.new_empty", "aten.alias", "aten._unsafe_view", "aten.lift_fresh"),
        *("aten.is_pinned", "aten._has_compatible", "aten.sym_", "prim.device"),
    )
)
TAKES_NO_SCALAR = ("aten.cat.", "aten.stack.", "aten._fused_")
"""Operations that refuse a scalar of the CPU beside tensors of the device."""
INDEXING = ("aten.index.", "aten.index_put", "aten._index_put_impl_", "aten._unsafe_index")


class _Backend(_DummyBackendModule):
    """The module `torch.counted`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)


class CountedTensor(torch.Tensor):
    """A tensor of the device; `values` holds its contents on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "CountedTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=DEVICE,
        )
        made.values = values
        return made

    def __init__(self, values: Tensor) -> None: ...

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"CountedTensor({self.values!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch refuses it for wrapped tensors

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {}, Count.current)


class Count(TorchDispatchMode):
    """Counts what happens inside its `with` block. Operations that make new tensors on the device need one around."""

    current: "Count | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        """'KIND at FILE:LINE' -> the number of waits."""
        self.kernels: Counter[str] = Counter()
        """Operation, as 'aten.add.Tensor' -> the number of launches."""

    def __enter__(self) -> "Count":
        self._outer, Count.current = Count.current, self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        Count.current = self._outer
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {}, self)

    def wait(self, kind: str) -> None:
        """Count a wait of the host, with the innermost place in fss."""
        frame: FrameType | None = sys._getframe()
        while frame is not None and "/fss/" not in frame.f_code.co_filename:
            frame = frame.f_back
        place = "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self.waits[f"{kind} at {place}"] += 1

    def launch(self, func: Any) -> None:
        """Count a kernel, unless the operation needs none."""
        name = str(func)
        if not name.startswith(NO_KERNEL) and not _is_view(func):
            self.kernels[name] += 1


def _is_view(func: Any) -> bool:
    if str(func).startswith("aten._to_copy"):
        return False
    returned = func._schema.returns
    return any(value.alias_info is not None and not value.alias_info.is_write for value in returned)


def _on_device(x: object) -> bool:
    return isinstance(x, CountedTensor)


def _values(x: Any) -> Any:
    return x.values if isinstance(x, CountedTensor) else x


def _dispatch(func: Any, args: Any, kwargs: Any, count: Count | None) -> Any:
    """Carry out an operation on the values, and count it in `count`."""
    name = str(func)
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    ours = [x for x in tensors if _on_device(x)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if not ours and target != NAME:
        return func(*args, **kwargs)
    count = count or Count()  # nobody looks
    if name == "aten._to_copy.default":
        return _copied(func, args[0], kwargs, target, count)
    if name.startswith("aten.copy_."):
        return _copied_into(func, *args, count=count, **kwargs)
    if any(isinstance(x, torch.Generator) for x in pytree.tree_leaves((args, kwargs))):
        raise RuntimeError(f"{name}: expected a generator of {NAME}, found one of the CPU")
    _refuse_mixed(func, [x for x in tensors if not _on_device(x)] if ours else [], args, count)
    mask = any(x.dtype in (torch.bool, torch.uint8) for x in _indices(name, args))
    if name in READS_SIZE or mask or (name == "aten.repeat_interleave.Tensor" and kwargs.get("output_size") is None):
        count.wait("indexing by bool" if mask else name.split(".")[1])
    count.launch(func)
    inner = dict(kwargs)
    if target == NAME:
        inner["device"] = torch.device("cpu")
    if "pin_memory" in inner:
        inner["pin_memory"] = False
    plain_args, plain_kwargs = pytree.tree_map(_values, (args, inner))
    result = CUDA_ONLY.get(name, func)(*plain_args, **plain_kwargs)
    wrapped = pytree.tree_map(lambda x: CountedTensor(x) if type(x) is Tensor else x, result)
    if result is None or not ours or name in CUDA_ONLY:
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _indices(name: str, args: Any) -> list[Tensor]:
    return [x for x in args[1] if isinstance(x, Tensor)] if name.startswith(INDEXING) else []


def _copied(func: Any, source: Tensor, kwargs: Any, target: str | None, count: Count) -> Tensor:
    plain = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    values = func(_values(source), **plain)
    blocking = not kwargs.get("non_blocking")
    if _on_device(source) and target == "cpu":
        if blocking:
            count.wait("copy to the host")
        return values
    if not _on_device(source):
        if blocking:
            count.wait("blocking copy to the device")
        return CountedTensor(values)
    count.launch(func)
    return CountedTensor(values)


def _copied_into(func: Any, target: Tensor, source: Tensor, non_blocking: bool = False, *, count: Count) -> Tensor:
    func(_values(target), _values(source))
    if _on_device(target) == _on_device(source):
        count.launch(func)
    elif not non_blocking:
        count.wait("blocking copy")
    return target


def _refuse_mixed(func: Any, of_cpu: list[Tensor], args: Any, count: Count) -> None:
    """Refuse tensors of the CPU beside ours; a scalar is a mere number to most operations, but not to all."""
    name, written = str(func), func._schema.arguments[0].alias_info
    into_host = written is not None and written.is_write and args and any(args[0] is x for x in of_cpu)
    if not (into_host or name.startswith(TAKES_NO_SCALAR)):
        of_cpu = [x for x in of_cpu if x.dim() > 0]
    if not of_cpu:
        return
    if all(any(x is index for index in _indices(name, args)) for x in of_cpu):
        count.wait("index from the host")
        return
    raise RuntimeError(f"{name}: all tensors must be on one device, found {NAME} and cpu {tuple(of_cpu[0].shape)}")


@contextmanager
def counting() -> Iterator[type[Count]]:
    """The device, while inside: `torch.tensor` and `torch.inference_mode` act as they would on CUDA."""
    with pytest.MonkeyPatch.context() as patch:
        make = torch.tensor

        def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            made = make(data, *args, **kwargs)  # its copy to the device is hidden from dispatch
            return made if device is None or torch.device(device).type != NAME else made.to(DEVICE)

        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch, "inference_mode", torch.no_grad)  # wrapped tensors know no inference tensors
        yield Count
