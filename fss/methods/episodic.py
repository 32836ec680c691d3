"""What all methods over a frozen backbone have in common: how they are evaluated, exported and restored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from fss.collectives import Collectives
from fss.data.batch import EpisodeSpec
from fss.errors import WeightsError, at_least
from fss.methods.base import EpisodeMethod, EpisodeMethodConfig
from fss.nn.backbones import Backbone, BackboneName, BatchNorm, Stem, check_backbone, check_size, make_backbone
from fss.nn.exports import ExportHeader, load_export
from fss.nn.region import IGNORE, resize
from fss.nn.weights import load_backbone


@dataclass(frozen=True, kw_only=True)
class EpisodicConfig(EpisodeMethodConfig):
    """Which frozen backbone looks at the images, and at what size."""

    size: int = 473
    """Side of the training crops and, unless another is asked for, of evaluated images, pixels: 8k + 1 for
    ResNets and VGGs, a multiple of the patch for ViTs."""
    backbone: BackboneName = "resnet50"
    """The frozen feature extractor, a key of fss.nn.backbones.BACKBONES: resnet18, resnet50, resnet101, vgg16, vgg16_bn,
    dinov2_vits14, dinov2_vits14_reg, dinov2_vitb14, dinov2_vitb14_reg."""
    stem: Stem = "torchvision"
    """How a ResNet begins and where it strides; published few-shot results use 'deep'."""

    def __post_init__(self) -> None:
        at_least("method", self, size=33)
        check_backbone("method.backbone", self.backbone)
        check_size("method.size", self.backbone, self.size)


@dataclass(frozen=True, kw_only=True)
class ImageNetConfig(EpisodicConfig):
    """A backbone with weights of its own file, as ImageNet trained them."""

    backbone_weights: str | None = None
    """File of the backbone's weights, of its `stem`; none: random weights."""

    def random_weights_caveat(self) -> list[str]:
        """The caution that belongs to a backbone without weights."""
        if self.backbone_weights:
            return []
        return ["The backbone has random weights: its scores show that the parts fit together and no more."]


BackboneConfigT = TypeVar("BackboneConfigT", bound=EpisodicConfig)


class FrozenBackboneMethod(EpisodeMethod[BackboneConfigT]):
    """A method that looks at episodes through networks that stay as they are (`non_trainable`).

    The constructor of one that learns takes the config and, from `restore`, the `header` of an export: then it reads no
    file that the config names.
    """

    @property
    def batch_spec(self) -> EpisodeSpec:
        return EpisodeSpec(size=self.config.size)

    def export_metadata(self) -> dict[str, Any]:
        """Fields of the export's header beside method and config, which the constructor finds there when restored."""
        return {}

    def export(self) -> tuple[dict[str, Tensor], ExportHeader]:
        """All that an evaluation needs, frozen networks included, and the configuration."""
        header = ExportHeader(format="pt", method=self.config.name, config=asdict(self.config))
        return self._state(), replace(header, **self.export_metadata())

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], header: ExportHeader) -> Self:
        method = cls(cls.Config(**(header.config or {})), header=header)
        method._load(tensors)
        return method

    def init_from(self, path: Path) -> list[str]:
        """Begin from an export of the same method and shape, its frozen networks included."""
        tensors, header = load_export(path)
        name = self.config.name
        if header.method != name:
            held = header.method or "something else"
            raise WeightsError(f"{path} holds {held}, not {name}: start from the export of a run of meta_train.py")
        try:
            self._load(tensors)
        except WeightsError as error:
            raise WeightsError(f"{path} does not fit: {error}") from None
        return [f"all weights, those of the frozen networks included, start from {path}"]

    def _state(self) -> dict[str, Tensor]:
        parts = {"trained": self.trainable, "replica": self.non_trainable}
        return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        own = self._state()
        odd = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
        if odd:
            raise WeightsError(
                f"{odd[0]} and {len(odd) - 1} other tensors are missing, unknown or of another shape: take the options "
                "of method from the run that wrote it"
            )
        for part, module in (("trained.", self.trainable), ("replica.", self.non_trainable)):
            module.load_state_dict({n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)})

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Without dropout and batch statistics, whatever mode the training left."""
        parts = [part for part in (self.trainable, self.non_trainable) if part.training]
        for part in parts:
            part.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for part in parts:
                part.train()


def imagenet_backbone(
    config: ImageNetConfig, header: ExportHeader | None = None, *, dilated: bool = True, bn: BatchNorm = "frozen"
) -> Backbone:
    """The backbone that `config` asks for, with the weights of its file unless `header` says that others will come.

    Raises WeightsError or ConfigError where the file is missing or does not fit.
    """
    backbone = make_backbone(config.backbone, stem=config.stem, dilated=dilated, bn=bn)
    if header is None and config.backbone_weights:
        backbone.load_state_dict(load_backbone(Path(config.backbone_weights), config.backbone, config.stem))
    return backbone


@torch.no_grad()
def tally(logits: Tensor, mask: Tensor, collectives: Collectives) -> tuple[Tensor, Tensor]:
    """How many pixels are known in a rank's part of the batch, on average over ranks, and the batch's IoU of the class.

    logits: [B, 2, h, w]; mask: uint8 [B, S, S] of 0, 1 and 255. Divided by that number, a loss that sums over known
    pixels weighs every one of them in the batch of all ranks alike: the mean over ranks of a rank's loss and gradient
    is what one rank with all their episodes would have. The IoU is a rank's part of it: the mean over ranks is that of
    the batch. Collective.
    """
    truth, known = mask == 1, mask != IGNORE
    found = (resize(logits.float(), mask.shape[1:]).argmax(1) == 1) & known  # [B, S, S]
    shared, either = (found & truth).sum(), (found | truth).sum()
    totals = collectives.all_reduce(torch.stack([known.sum(), either]))
    pixels, union = totals.clamp(min=1) / collectives.world_size
    return pixels, shared / union
