"""Files of encoder weights: ours to write, and every published layout that a prior extractor may start from."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fss.errors import WeightsError
from fss.nn.resnet import BACKBONES, HEAD, backbone_of


@dataclass(kw_only=True)
class Start:
    """What a file offers to begin from, names in torchvision's layout, heads as `fc.0.*` and `fc.2.*` where it has one.

    `key` is empty where the file holds one encoder only.
    """

    layout: str
    """'official MoCo checkpoint', 'torchvision ResNet' or 'export of this program'."""
    backbone: str
    query: dict[str, Tensor]
    key: dict[str, Tensor] = field(default_factory=dict)
    queue: Tensor | None = None
    """[K, D] unit vectors."""
    pointer: int = 0
    """The slot of `queue` that is written next."""


def save_export(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors and a header of strings as safetensors; through a temporary name, so that no half file is left."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, dict(header))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_export(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a safetensors file; raises WeightsError where it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}): copy it again") from None


def load_start(path: Path, backbone: str) -> Start:
    """Read weights for an encoder of `backbone` from an official MoCo checkpoint, a torchvision ResNet or our export.

    Nothing is unpickled but tensors and plain containers. Raises WeightsError, naming what the file holds, where it is
    damaged, of another architecture, or of another backbone.
    """
    path = Path(path)
    state, header = load_export(path) if path.suffix == ".safetensors" else (_load_torch(path), {})
    if any(name.startswith("module.encoder_") for name in state):
        start = _of_moco(path, state)
    else:
        ours = header.get("method") == "prior"
        tensors = _encoder(path, state)
        if not ours:
            tensors = {name: t for name, t in tensors.items() if not name.startswith(HEAD)}    # fc is a classifier
        start = Start(
            layout="export of this program" if ours else "torchvision ResNet",
            backbone=_recognised(path, state),
            query=tensors,
        )
    if start.backbone != backbone:
        raise WeightsError(
            f"{path} is an {start.layout} of a {start.backbone} but the method's backbone is {backbone}: "
            f"set backbone to {start.backbone} or give weights of a {backbone}"
        )
    return start


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as a file of tensors ({reason}): give another file") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(
            f"{path} holds no table of tensors: an official MoCo checkpoint, a torchvision ResNet's state dict or a "
            ".safetensors export of this program can be started from"
        )
    return state


def _of_moco(path: Path, state: dict[str, Tensor]) -> Start:
    encoders = {
        side: _encoder(path, {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
        for side in ("q", "k")
        if any(n.startswith(prefix := f"module.encoder_{side}.") for n in state)
    }
    query = encoders.get("q") or encoders["k"]
    queue = state.get("module.queue")    # [D, K] in the official layout
    return Start(
        layout="official MoCo checkpoint",
        backbone=_recognised(path, query),
        query=query,
        key=encoders.get("k", {}),
        queue=None if queue is None else queue.T.contiguous().float(),
        pointer=int(state["module.queue_ptr"]) if "module.queue_ptr" in state else 0,
    )


def _encoder(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one encoder, checked to be exactly those of the backbone that they look like."""
    with torch.device("meta"):
        expected = BACKBONES[_recognised(path, state)](1).state_dict()
    trunk = {name: t for name, t in state.items() if not name.startswith(HEAD)}
    wanted = {name: t.shape for name, t in expected.items() if not name.startswith(HEAD)}
    # Files older than torch 0.4.1 do not count batches.
    odd = {n for n in wanted.keys() ^ trunk.keys() if not n.endswith("num_batches_tracked")} | {
        n for n in wanted.keys() & trunk.keys() if wanted[n] != trunk[n].shape
    }
    if odd:
        raise WeightsError(
            f"{path} looks like a {_recognised(path, state)} but {len(odd)} of its tensors are missing, unknown or of "
            f"another shape, {min(odd)} first: give a complete file"
        )
    return dict(state)


def _recognised(path: Path, state: Mapping[str, Tensor]) -> str:
    backbone = backbone_of(state)
    if backbone is None:
        some = ", ".join(sorted(state)[:3]) or "no tensor"
        raise WeightsError(
            f"{path} holds no {', '.join(BACKBONES)} of torchvision's layout (it holds {some}, ...): give an official "
            "MoCo checkpoint, a torchvision ResNet's state dict or a .safetensors export of this program"
        )
    return backbone
