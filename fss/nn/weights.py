"""Files of network weights: ours to write, and every published layout that a network may start from."""

import functools
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fss.errors import WeightsError
from fss.nn.backbones import BACKBONES, Backbone, Stem, make_backbone
from fss.nn.exports import ExportHeader, load_export
from fss.nn.pspnet import PSPNet
from fss.nn.resnet import HEAD, LAYOUTS

NOT_THE_TRUNK = (HEAD, "classifier.")
"""What the names of a classifier or projection head begin with, in torchvision's networks and in MoCo's."""

DEEP_STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
"""Place in the `layer0` of the few-shot references -> name; a 7x7 stem has the first two only."""

COUNTER = "num_batches_tracked"
"""A buffer of batch norm that files older than torch 0.4.1 lack."""


class Kind(NamedTuple):
    """A network as its tensors tell: what strides where, and so 'torchvision' from 'original', they do not."""

    name: str
    deep: bool

    def __str__(self) -> str:
        if self.name.startswith("vgg"):
            return f"a {self.name}"
        return f"a {self.name} with a {'deep' if self.deep else '7x7'} stem"


KINDS = [Kind(name, deep) for name in BACKBONES for deep in (False, True) if not (deep and name.startswith("vgg"))]


@dataclass(kw_only=True)
class Start:
    """What a file offers a contrastive method to begin from: names of torchvision, heads as `fc.0.*` and `fc.2.*`.

    `key` is empty where the file holds one encoder only.
    """

    layout: str
    """'official MoCo checkpoint', 'torchvision ResNet' or 'export of this program'."""
    query: dict[str, Tensor]
    key: dict[str, Tensor] = field(default_factory=dict)
    queue: Tensor | None = None
    """[K, D] unit vectors."""
    pointer: int = 0
    """The slot of `queue` that is written next."""


def load_start(path: Path, backbone: str) -> Start:
    """Read weights for an encoder of `backbone` from an official MoCo checkpoint, a torchvision ResNet or our export.

    Nothing is unpickled but tensors and plain containers. Raises WeightsError, naming what the file holds, where it is
    damaged, of another architecture, or of another backbone.
    """
    tensors, header = _read(path)
    encoders = _encoders(tensors)
    parts = {side: (*_checked(path, state), _head(state)) for side, state in encoders.items()}
    kind = next(iter(parts.values()))[0]
    if kind != (backbone, False):
        other = f" or set backbone to {kind.name}" if not kind.deep and kind.name in LAYOUTS else ""
        raise WeightsError(
            f"{path} holds the weights of {kind} but the method's backbone is {backbone}: give weights of a {backbone} "
            f"with a 7x7 stem{other}"
        )
    moco, ours = "" not in encoders, header.method == "prior"
    # Any other file's fc is a classifier.
    states = {side: trunk | (head if moco or ours else {}) for side, (_, trunk, head) in parts.items()}
    queue = tensors.get("module.queue")  # [D, K] in the official layout
    return Start(
        layout="official MoCo checkpoint" if moco else "export of this program" if ours else "torchvision ResNet",
        query=next(iter(states.values())),
        key=states.get("k", {}),
        queue=None if queue is None else queue.T.contiguous(),
        pointer=int(tensors["module.queue_ptr"]) if "module.queue_ptr" in tensors else 0,
    )


def load_backbone(path: Path, name: str, stem: Stem = "torchvision") -> dict[str, Tensor]:
    """The float32 state dict of `make_backbone(name, stem=stem)` from a published file or an export of ours.

    Read are: torchvision's state dicts; semseg's with a deep stem; the same under `state_dict`, under `module.`, or
    with the stages `layer0` to `layer4` of the few-shot references, whatever head stands beside them; official MoCo
    checkpoints (the query encoder, which is what MoCo transfers); exports of the prior extractor; and any of these as
    safetensors. Heads are left out. The stems 'torchvision' and 'original' have equal tensors: `stem` is believed
    unless the file is known better, by its kind or by an entry 'stem' in its safetensors header.
    Raises WeightsError where the file does not hold that.
    """
    tensors, header = _read(path)
    method = header.method or "prior"
    if method != "prior":
        raise WeightsError(
            f"{path} is an export of the method {method}, not of a backbone: give a state dict of {name} itself"
        )
    encoders = _encoders(tensors)
    kind, trunk = _checked(path, next(iter(encoders.values())))
    if kind.name != name:
        raise WeightsError(
            f"{path} holds the weights of {kind} but backbone is {name}: set backbone to {kind.name} or give weights "
            f"of a {name}"
        )
    if kind.deep:
        fitting = ["deep"]
    elif header.stem is not None:
        fitting = [header.stem]
    elif "" not in encoders or header.method is not None:
        fitting = ["torchvision"]  # what MoCo, and this program, train
    else:
        fitting = ["torchvision", "original"]
    if stem not in fitting and not name.startswith("vgg"):
        raise WeightsError(
            f"{path} holds the weights of {kind} but stem is {stem}: set stem to {' or '.join(fitting)} or give "
            f"weights of a {name} with that stem"
        )
    return trunk


def load_prior(path: Path) -> tuple[dict[str, Tensor], ExportHeader]:
    """A pretrained prior extractor: the state dict of `make_backbone(header.backbone)`, and the header.

    Read are the exports of launch/pretrain_prior.py, whose header, which tells of their training, is handed on; and
    official MoCo checkpoints (the momentum encoder where there is one), which are a prior extractor of global contrast
    alone and of whose training no more is known than `method` 'moco' and `backbone`.
    Raises WeightsError for a file of another method or of none of these kinds.
    """
    tensors, header = _read(path)
    encoders = _encoders(tensors)
    moco = "" not in encoders
    if not moco and header.method != "prior":
        what = f"an export of the method {header.method}" if header.method else "no export of a prior extractor"
        raise WeightsError(
            f"{path} is {what}: give the prior.safetensors that launch/pretrain_prior.py leaves in its run directory, "
            "or an official MoCo checkpoint"
        )
    kind, trunk = _checked(path, encoders["k"] if "k" in encoders else next(iter(encoders.values())))
    if kind.deep or kind.name not in LAYOUTS:
        raise WeightsError(f"{path} holds the weights of {kind}, but a prior extractor is a ResNet with a 7x7 stem")
    known = ExportHeader(method="moco") if moco else header
    return trunk, replace(known, backbone=kind.name)


def load_base(path: Path) -> tuple[dict[str, Tensor], ExportHeader]:
    """A trained base learner: the state dict of its PSPNet, and the header that tells of its training.

    The header has `backbone`, `stem` and `classes`, JSON {id: name} of what the outputs 1, 2, ... stand for.
    Raises WeightsError for a file of anything else, or whose tensors are not those that its header speaks of.
    """
    tensors, header = load_export(path)
    if header.method != "base":
        what = f"an export of the method {header.method}" if header.method else "no export of a base learner"
        raise WeightsError(
            f"{path} is {what}: give the base.safetensors or best.safetensors that launch/train_base.py leaves in its "
            "run directory"
        )
    with torch.device("meta"):
        expected = PSPNet(header.backbone, header.stem, len(header.classes or ()))
    if odd := _shapes(tensors).items() ^ _shapes(expected.state_dict()).items():
        raise WeightsError(
            f"{path} has {len({name for name, _ in odd})} tensors that are missing, unknown or of another shape for "
            f"the {header.backbone} of its header, {min(odd)[0]} first: give a complete file"
        )
    return tensors, header


def _read(path: Path) -> tuple[dict[str, Tensor], ExportHeader]:
    """All tensors of a file, floats as float32, and its header of strings, which only safetensors has."""
    path = Path(path)
    tensors, header = load_export(path) if path.suffix == ".safetensors" else (_load_torch(path), ExportHeader())
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, header


def _load_torch(path: Path) -> dict[str, Tensor]:
    _must_exist(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} cannot be read as a file of tensors ({reason}): give another file") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(
            f"{path} holds no table of tensors: give a state dict of a ResNet or VGG, an official MoCo checkpoint or a "
            ".safetensors export of this program"
        )
    return state


def _must_exist(path: Path) -> None:
    if not Path(path).is_file():
        raise WeightsError(f"{path} is no file, so it cannot be read: check the path of the weights")


def _encoders(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The encoders of a MoCo checkpoint, 'q' before 'k'; of any other file the one network, as ''."""
    encoders = {}
    for side in "qk":
        prefix = f"module.encoder_{side}."
        if state := {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}:
            encoders[side] = state
    return encoders or {"": {name.removeprefix("module."): t for name, t in tensors.items()}}


def _head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in state.items() if name.startswith(HEAD)}


def _torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network without its head, in torchvision's names where it is in those of the few-shot references.

    These cut a network into `layer0` to `layer4`, a VGG's being consecutive slices of torchvision's `features`.
    """
    if not any(name.startswith("layer0.") for name in state):
        return {name: t for name, t in state.items() if not name.startswith(NOT_THE_TRUNK)}
    slices = None
    if "layer1.0.weight" in state:
        slices = _skeleton(Kind("vgg16_bn" if "layer0.1.weight" in state else "vgg16", False)).ends
    renamed = {}
    for name, tensor in state.items():
        if found := re.fullmatch(r"layer([0-4])\.(\d+)\.(.+)", name):  # else it is a head's
            layer, place, leaf = int(found[1]), int(found[2]), found[3]
            if slices:
                name = f"features.{slices[layer] + place}.{leaf}"
            elif layer == 0:
                name = f"{DEEP_STEM.get(place, name)}.{leaf}"
            renamed[name] = tensor
    return renamed


@functools.cache
def _skeleton(kind: Kind) -> Backbone:
    with torch.device("meta"):
        return make_backbone(kind.name, stem="deep" if kind.deep else "torchvision")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in state.items() if not name.endswith(COUNTER)}


def _checked(path: Path, state: dict[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
    """Which network this is, and exactly its tensors; raises WeightsError where it is none of KINDS."""
    state = _torchvision_names(state)
    odd = {
        kind: {name for name, _ in _shapes(state).items() ^ _shapes(_skeleton(kind).state_dict()).items()}
        for kind in KINDS
    }
    kind = min(odd, key=lambda kind: len(odd[kind]))
    expected = _skeleton(kind).state_dict()
    if len(odd[kind]) > 0.1 * len(expected):
        some = ", ".join(sorted(state)[:3]) or "no tensor"
        raise WeightsError(
            f"{path} holds no {', '.join(BACKBONES)} (it holds {some}, ...): give a state dict of one of them, an "
            "official MoCo checkpoint or a .safetensors export of this program"
        )
    if odd[kind]:
        raise WeightsError(
            f"{path} looks like {kind} but {len(odd[kind])} of its tensors are missing, unknown or of another shape, "
            f"{min(odd[kind])} first: give a complete file"
        )
    return kind, {name: state.get(name, torch.zeros((), dtype=torch.int64)) for name in expected}
