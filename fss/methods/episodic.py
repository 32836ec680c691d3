"""What all methods over a frozen backbone have in common: how they are evaluated, exported and restored."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fss.data.batch import EpisodeSpec
from fss.errors import WeightsError
from fss.methods.base import Method, Peers
from fss.methods.episodic_config import EpisodicConfig, ImageNetConfig
from fss.nn.backbones import Backbone, BatchNorm, make_backbone
from fss.nn.fem import IGNORE
from fss.nn.region import resize
from fss.nn.weights import load_backbone, load_export


class Episodic(Method):
    """A method that looks at episodes through networks that stay as they are (`replica`).

    The constructor of one that learns takes the config and, from `restore`, the `header` of an export: then it reads no
    file that the config names.
    """

    config: EpisodicConfig

    @property
    def consumes(self) -> EpisodeSpec:
        return EpisodeSpec(size=self.config.size)

    def after_step(self, peers: Peers) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        """What an export says beside the config and the weights, as JSON, for the constructor to find in its header."""
        return {}

    def export(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """All that an evaluation needs, frozen networks included, and the configuration."""
        known = {"config": asdict(self.config), **self.facts()}
        header = {"format": "pt", "method": self.config.name}
        return self._state(), header | {key: json.dumps(value, sort_keys=True) for key, value in known.items()}

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Self:
        method = cls(cls.Config(**json.loads(header["config"])), header=header)
        method._load(tensors)
        return method

    def start_from(self, path: Path) -> list[str]:
        """Begin from an export of the same method and shape, its frozen networks included."""
        tensors, header = load_export(path)
        name = self.config.name
        if header.get("method") != name:
            held = header.get("method", "something else")
            raise WeightsError(f"{path} holds {held}, not {name}: start from the export of a run of meta_train.py")
        try:
            self._load(tensors)
        except WeightsError as error:
            raise WeightsError(f"{path} does not fit: {error}") from None
        return [f"all weights, those of the frozen networks included, start from {path}"]

    def _state(self) -> dict[str, Tensor]:
        parts = {"trained": self.trained, "replica": self.replica}
        return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        own = self._state()
        odd = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
        if odd:
            raise WeightsError(
                f"{odd[0]} and {len(odd) - 1} other tensors are missing, unknown or of another shape: take the options "
                "of method from the run that wrote it"
            )
        for part, module in (("trained.", self.trained), ("replica.", self.replica)):
            module.load_state_dict({n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)})

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Without dropout and batch statistics, whatever mode the training left."""
        parts = [part for part in (self.trained, self.replica) if part.training]
        for part in parts:
            part.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for part in parts:
                part.train()


def imagenet_backbone(
    config: ImageNetConfig, header: Mapping[str, str] | None = None, *, dilated: bool = True, bn: BatchNorm = "frozen"
) -> Backbone:
    """The backbone that `config` asks for, with the weights of its file unless `header` says that others will come.

    Raises WeightsError or ConfigError where the file is missing or does not fit.
    """
    backbone = make_backbone(config.backbone, stem=config.stem, dilated=dilated, bn=bn)
    if header is None and config.backbone_weights:
        backbone.load_state_dict(load_backbone(Path(config.backbone_weights), config.backbone, config.stem))
    return backbone


@torch.no_grad()
def tally(logits: Tensor, mask: Tensor, peers: Peers) -> tuple[Tensor, Tensor]:
    """How many pixels are known in a rank's part of the batch, on average over ranks, and the batch's IoU of the class.

    logits: [B, 2, h, w]; mask: uint8 [B, S, S] of 0, 1 and 255. Divided by that number, a loss that sums over known
    pixels weighs every one of them in the batch of all ranks alike: the mean over ranks of a rank's loss and gradient
    is what one rank with all their episodes would have. The IoU is a rank's part of it: the mean over ranks is that of
    the batch. Collective.
    """
    truth, known = mask == 1, mask != IGNORE
    found = (resize(logits.float(), mask.shape[1:]).argmax(1) == 1) & known  # [B, S, S]
    shared, either = (found & truth).sum(), (found | truth).sum()
    totals = peers.sum(torch.stack([known.sum(), either]))
    pixels, union = totals.clamp(min=1) / peers.world
    return pixels, shared / union
