"""The common parts of convolutional backbones: five stages in a row, and the names of their published tensors."""

import abc
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from fss.nn.backbones.registry import Backbone, SizeRule, Step

SIDES = SizeRule(8, 1)
"""Images of side 8k + 1 give maps of side k + 1 at stride 8, corners on corners."""

NOT_THE_TRUNK = ("fc.", "classifier.")
"""Beginnings of the names of a classifier or projection head, in torchvision's networks and in MoCo's."""

DEEP_STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
"""Place in the `layer0` of the few-shot references -> name; a 7x7 stem has the first two only."""


class ConvBackbone(Backbone):
    """A backbone whose blocks are stages of a convolutional network, each computed from the map of the one before."""

    @abc.abstractmethod
    def stage(self, number: int, x: Tensor, inner: list[Tensor] | None = None) -> Tensor:
        """Compute stage 0 from images [B, 3, H, W], stage n from the map [B, C, h, w] of stage n - 1.

        Stages 2 to 4 are the blocks. The outputs of the layers of stages 1 to 4 (see `Layers.inner`) are appended to
        `inner`.
        """

    def steps(self, image: Tensor, inner: Collection[int] = ()) -> Iterator[Step]:
        x = image.contiguous(memory_format=torch.channels_last)
        x = self.stage(1, self.stage(0, x))
        for number in (2, 3, 4):
            outputs: list[Tensor] = []
            x = self.stage(number, x, outputs if number in inner else None)
            yield Step(number, x, outputs)

    def _block4(self, block3: Tensor) -> Tensor:
        return self.stage(4, block3)


def draw(conv: nn.Conv2d) -> None:
    """Draw the weights of a convolution as torchvision's constructors do."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def torchvision_names(state: Mapping[str, Tensor], slices: Sequence[int] | None = None) -> dict[str, Tensor]:
    """A network without its head, in torchvision's names even if it is in those of the few-shot references.

    These cut a network into `layer0` to `layer4`. slices: of a VGG, the places in torchvision's `features` where these
    begin; None for a ResNet.
    """
    if not any(name.startswith("layer0.") for name in state):
        return {name: t for name, t in state.items() if not name.startswith(NOT_THE_TRUNK)}
    renamed = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"layer([0-4])\.(\d+)\.(.+)", name):  # any other name is a head's
            layer, place, leaf = int(match[1]), int(match[2]), match[3]
            if slices is not None:
                name = f"features.{slices[layer] + place}.{leaf}"
            elif layer == 0:
                name = f"{DEEP_STEM.get(place, name)}.{leaf}"
            renamed[name] = tensor
    return renamed
