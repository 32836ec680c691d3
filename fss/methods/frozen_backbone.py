"""The common part of methods over a frozen backbone: options, export, restoring, evaluation."""

import abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor

from fss.data.batch import EpisodeSpec
from fss.errors import WeightsError, at_least
from fss.methods.base import EpisodeMethod, EpisodeMethodConfig, Report, StepContext
from fss.nn.backbones import Backbone, BackboneName, BatchNorm, Stem, check_backbone, check_size, make_backbone
from fss.nn.exports import ExportHeader, load_export
from fss.nn.region import IGNORE, resize
from fss.nn.weights import load_backbone


@dataclass(frozen=True, kw_only=True)
class FrozenBackboneConfig(EpisodeMethodConfig):
    """The options of a method over a frozen backbone: the network and the size of the images."""

    size: int = 473
    """Side of the training crops and, unless another is asked for, of evaluated images, pixels: 8k + 1 for ResNets
    and VGGs, a multiple of the patch for ViTs."""
    backbone: BackboneName = "resnet50"
    """The frozen feature extractor, a key of fss.nn.backbones.BACKBONES: resnet18, resnet50, resnet101, vgg16,
    vgg16_bn, dinov2_vits14, dinov2_vits14_reg, dinov2_vitb14, dinov2_vitb14_reg."""
    stem: Stem = "torchvision"
    """How a ResNet begins and where it strides; published few-shot results use 'deep'."""

    def __post_init__(self) -> None:
        at_least("method", self, size=33)
        check_backbone("method.backbone", self.backbone)
        check_size("method.size", self.backbone, self.size)


@dataclass(frozen=True, kw_only=True)
class PretrainedBackboneConfig(FrozenBackboneConfig):
    """The same with a file of pretrained weights, such as ImageNet's, for the backbone."""

    backbone_weights: str | None = None
    """File of the backbone's weights, for its `stem`; none: random weights."""

    def random_weights_caveat(self) -> list[str]:
        """Return the caveat of a backbone without a file of weights, if there is none."""
        if self.backbone_weights:
            return []
        return ["The backbone has random weights: its scores show that the parts fit together and no more."]


BackboneConfigT = TypeVar("BackboneConfigT", bound=FrozenBackboneConfig)


class FrozenBackboneMethod(EpisodeMethod[BackboneConfigT]):
    """A method for episodes whose backbone is frozen (in `non_trainable`).

    With the `header` of an export the constructor reads no file that the config names: `restore` loads the weights.
    """

    @abc.abstractmethod
    def __init__(self, config: BackboneConfigT, *, header: ExportHeader | None = None) -> None:
        """Build the networks, with the weights of the files in `config` unless `header` is given.

        Raises ConfigError or WeightsError if a file is missing or does not fit.
        """

    @property
    def batch_spec(self) -> EpisodeSpec:
        return EpisodeSpec(size=self.config.size)

    @property
    def frozen(self) -> tuple[str, ...]:
        return ("backbone",)

    def export_metadata(self) -> dict[str, Any]:
        """Return the header's fields beside method and config by name; `restore` passes them to the constructor."""
        return {}

    def export(self) -> tuple[dict[str, Tensor], ExportHeader]:
        """Return all tensors that an evaluation needs, those of frozen networks included, and the header."""
        header = ExportHeader(format="pt", method=self.config.name, config=asdict(self.config))
        return self._state(), replace(header, **self.export_metadata())

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], header: ExportHeader) -> Self:
        config = cast(BackboneConfigT, cls.Config(**(header.config or {})))  # a class variable cannot be generic
        method = cls(config, header=header)
        method._load(tensors)
        return method

    def init_from(self, path: Path) -> list[str]:
        """Start from an export of the same method and shape; the weights of frozen networks are loaded, too.

        Raises WeightsError if the file is damaged, of another method or of other shapes.
        """
        tensors, header = load_export(path)
        name = self.config.name
        if header.method != name:
            content = header.method or "something else"
            raise WeightsError(f"{path} holds {content}, not {name}: start from the export of a run of meta_train.py")
        try:
            self._load(tensors)
        except WeightsError as error:
            raise WeightsError(f"{path} does not fit: {error}") from None
        return [f"all weights, those of the frozen networks included, start from {path}"]

    def _state(self) -> dict[str, Tensor]:
        """Return all tensors by their names in exports, whose first part is older than the names of the attributes."""
        parts = {"trained": self.trainable, "replica": self.non_trainable}
        return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of an export. Raises WeightsError if names or shapes differ from this method's."""
        own = self._state()
        wrong = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
        if wrong:
            raise WeightsError(
                f"{wrong[0]} and {len(wrong) - 1} other tensors are missing, unknown or of another shape: take the "
                "options of method from the run that wrote it"
            )
        for part, module in (("trained.", self.trainable), ("replica.", self.non_trainable)):
            module.load_state_dict({n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)})

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Evaluation mode without gradients while inside; afterwards the mode of before."""
        parts = [part for part in (self.trainable, self.non_trainable) if part.training]
        for part in parts:
            part.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for part in parts:
                part.train()


def pretrained_backbone(
    config: PretrainedBackboneConfig,
    header: ExportHeader | None = None,
    *,
    dilated: bool = True,
    bn: BatchNorm = "frozen",
) -> Backbone:
    """Build the frozen backbone of `config`, with the weights of its file unless the `header` of an export is given.

    Raises WeightsError or ConfigError if the file is missing or does not fit.
    """
    backbone = make_backbone(config.backbone, stem=config.stem, dilated=dilated, bn=bn)
    if header is None and config.backbone_weights:
        backbone.load_state_dict(load_backbone(Path(config.backbone_weights), config.backbone, config.stem))
    return backbone


@torch.no_grad()
def known_pixels_and_iou(logits: Tensor, mask: Tensor, context: StepContext) -> tuple[Tensor, Report]:
    """Count the known pixels of a rank's part of the batch, as the mean over ranks, and compute the IoU of the class.

    logits: [B, 2, h, w]; mask: uint8 [B, S, S] of 0, 1 and 255. Returns a scalar, and in a step that is logged the
    report {"iou": scalar}. A loss that sums over known pixels and is divided by their number weighs every known pixel
    of the batch of all ranks alike: the mean over ranks of loss and gradient is that of one rank with all episodes. The
    IoU is a rank's share of it: the mean over ranks is the IoU of the batch. Collective.
    """
    truth, known, collectives = mask == 1, mask != IGNORE, context.collectives
    if not context.logged:
        return collectives.all_reduce(known.sum()).clamp(min=1) / collectives.world_size, {}
    predicted = (resize(logits.float(), mask.shape[1:]).argmax(1) == 1) & known  # [B, S, S]
    intersection, union = (predicted & truth).sum(), (predicted | truth).sum()
    totals = collectives.all_reduce(torch.stack([known.sum(), union]))
    mean_pixels, mean_union = totals.clamp(min=1) / collectives.world_size
    return mean_pixels, {"iou": intersection / mean_union}
