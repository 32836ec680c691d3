"""Saves of the toy method, and a look into the thread that writes them."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fss.train import tensor_file
from fss.train.checkpoint import State
from fss.train.optim import OptimConfig, build_optimizer
from tests.support.toy import Toy

write = tensor_file.write


def new_state() -> State:
    """As at the start of a training."""
    torch.manual_seed(0)
    method = Toy()
    return State(name="toy", method=method, optimizer=build_optimizer(method, OptimConfig()))


def writing(
    patch: pytest.MonkeyPatch,
    before: Callable[[Path, Callable], object] = lambda path, progressed: None,
    piece: Callable[[Path], object] = lambda path: None,
) -> None:
    """Have the writing thread call before(path, progressed) at the beginning of a file, piece(path) after a piece."""

    def wrapped(path: Path, tensors: dict, progressed: Callable[[], object]) -> str:
        before(path, progressed)
        return write(path, tensors, lambda: (piece(path), progressed()))

    patch.setattr(tensor_file, "write", wrapped)


def step_of(path: Path) -> int:
    """The step of a half-written checkpoint, from the path of its tensors."""
    return int(path.parent.name.split("_")[1].split(".")[0])


def full(path: Path, progressed: Callable) -> None:
    """What `writing` calls to find the disk full."""
    raise OSError(errno.ENOSPC, "No space left on device")
