"""Files of network weights: the exports of this program, and every published layout that a network may start from."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fss.errors import WeightsError
from fss.nn.backbones import BACKBONES, Backbone, BackboneName, Stem, make_backbone
from fss.nn.exports import ExportHeader, load_export
from fss.nn.pspnet import PSPNet
from fss.nn.published import read_weights
from fss.nn.resnet import HEAD, LAYOUTS

COUNTER = "num_batches_tracked"
"""A buffer of batch norm that files older than torch 0.4.1 lack."""


class Kind(NamedTuple):
    """A network as its tensors tell it: the stems 'torchvision' and 'original' have equal ones."""

    name: BackboneName
    deep: bool

    def __str__(self) -> str:
        if len(BACKBONES[self.name].stems) == 1:
            return f"a {self.name}"
        return f"a {self.name} with a {'deep' if self.deep else '7x7'} stem"


def kinds() -> list[Kind]:
    """Every kind of network that a registered backbone can be."""
    return [
        Kind(name, deep)
        for name, entry in BACKBONES.items()
        for deep in (False, True)
        if not deep or "deep" in entry.stems
    ]


@dataclass(kw_only=True)
class Start:
    """Weights from which a contrastive method can start, in torchvision's names, heads as `fc.0.*` and `fc.2.*`.

    `key` is empty if the file has one encoder only.
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

    Nothing but tensors and plain containers is unpickled. Raises WeightsError, which names what the file holds, if the
    file is damaged, of another architecture, or of another backbone.
    """
    tensors, header = read_weights(path)
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
    """Read the float32 state dict of `make_backbone(name, stem=stem)` from a published file or an export of ours.

    These are read: torchvision's state dicts; semseg's with a deep stem; either of them under `state_dict`, under
    `module.`, or with the stages `layer0` to `layer4` of the few-shot references and any head beside them; official
    MoCo checkpoints (the query encoder, which MoCo transfers); exports of the prior extractor; ViTs in the names of
    timm or of DINOv2; and any of these as safetensors. Heads are left out. The stems 'torchvision' and 'original' have
    equal tensors: `stem` decides, unless the kind of file or an entry 'stem' in its safetensors header does.
    Raises WeightsError if the file holds something else.
    """
    tensors, header = read_weights(path)
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
        fitting = ["torchvision"]  # the stem that MoCo and this program train
    else:
        fitting = ["torchvision", "original"]
    if stem not in fitting and len(BACKBONES[name].stems) > 1:
        raise WeightsError(
            f"{path} holds the weights of {kind} but stem is {stem}: set stem to {' or '.join(fitting)} or give "
            f"weights of a {name} with that stem"
        )
    return trunk


def load_prior(path: Path) -> tuple[dict[str, Tensor], ExportHeader]:
    """Read a pretrained prior extractor: the state dict of `make_backbone(header.backbone)`, and the header.

    The file is an export of launch/pretrain_prior.py, whose header is returned, or an official MoCo checkpoint (its
    momentum encoder if there is one). The latter is a prior extractor of global contrast alone, and its header has
    `method` 'moco' and `backbone` only.
    Raises WeightsError for a file of another method or of neither kind.
    """
    tensors, header = read_weights(path)
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
    """Read a trained base learner: the state dict of its PSPNet, and the header of its training.

    The header has `backbone`, `stem` and `classes`. Raises WeightsError for a file of anything else, or if the tensors
    are not those of the network in the header.
    """
    tensors, header = load_export(path)
    if header.method != "base":
        what = f"an export of the method {header.method}" if header.method else "no export of a base learner"
        raise WeightsError(
            f"{path} is {what}: give the base.safetensors or best.safetensors that launch/train_base.py leaves in its "
            "run directory"
        )
    if header.backbone not in BACKBONES or header.stem not in BACKBONES[header.backbone].stems:
        raise WeightsError(
            f"{path} is a base learner with the backbone {header.backbone} and the stem {header.stem}, which this "
            "version does not have: give another file"
        )
    with torch.device("meta"):
        expected = PSPNet(header.backbone, header.stem, len(header.classes or ()))
    if odd := _shapes(tensors).items() ^ _shapes(expected.state_dict()).items():
        raise WeightsError(
            f"{path} has {len({name for name, _ in odd})} tensors that are missing, unknown or of another shape for "
            f"the {header.backbone} of its header, {min(odd)[0]} first: give a complete file"
        )
    return tensors, header


def _encoders(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The encoders of a MoCo checkpoint, 'q' before 'k'; of any other file the one network, under the name ''."""
    encoders = {}
    for side in "qk":
        prefix = f"module.encoder_{side}."
        if state := {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}:
            encoders[side] = state
    return encoders or {"": {name.removeprefix("module."): t for name, t in tensors.items()}}


def _head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in state.items() if name.startswith(HEAD)}


@functools.lru_cache(32)
def _skeleton(kind: Kind) -> Backbone:
    with torch.device("meta"):
        return make_backbone(kind.name, stem="deep" if kind.deep else "torchvision")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in state.items() if not name.endswith(COUNTER)}


def _checked(path: Path, state: Mapping[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
    """The kind of network that a file holds, and exactly its tensors. Raises WeightsError if it is none of `kinds`."""
    named, odd = {}, {}
    for kind in kinds():
        entry = BACKBONES[kind.name]
        tensors = entry.own_names(state)
        if entry.first_tensor in tensors:  # else it is of another family: do not build it
            named[kind] = tensors
            odd[kind] = {name for name, _ in _shapes(tensors).items() ^ _shapes(_skeleton(kind).state_dict()).items()}
    nearest = min(odd, key=lambda kind: len(odd[kind]), default=None)
    expected = {} if nearest is None else _skeleton(nearest).state_dict()
    if nearest is None or len(odd[nearest]) > 0.1 * len(expected):
        some = ", ".join(sorted(state)[:3]) or "no tensor"
        raise WeightsError(
            f"{path} holds no {', '.join(BACKBONES)} (it holds {some}, ...): give a state dict of one of them, an "
            "official MoCo checkpoint or a .safetensors export of this program"
        )
    if odd[nearest]:
        raise WeightsError(
            f"{path} looks like {nearest} but {len(odd[nearest])} of its tensors are missing, unknown or of another "
            f"shape, {min(odd[nearest])} first: give a complete file"
        )
    return nearest, {name: named[nearest].get(name, torch.zeros((), dtype=torch.int64)) for name in expected}
