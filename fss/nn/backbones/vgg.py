"""VGG-16 as a backbone (Simonyan and Zisserman 2015), with the slices of PFENet's reference implementation."""

from collections.abc import Iterator
from functools import partial
from itertools import accumulate

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from fss.nn.backbones.convolutional import SIDES, ConvBackbone, draw, torchvision_names
from fss.nn.backbones.registry import BackboneEntry, BatchNorm, Stem, Step

BATCH_NORM = {"vgg16": False, "vgg16_bn": True}
"""Name -> whether batch norm follows each convolution."""


def stage_starts(name: str) -> list[int]:
    """The places in torchvision's `features` at which stages 0 to 4 begin."""
    length = 3 if BATCH_NORM[name] else 2  # of a convolution, its norm and its ReLU
    places = list(accumulate(1 if layer == "M" else length for layer in cfgs["D"]))
    pools = [end for end, layer in zip(places, cfgs["D"], strict=True) if layer == "M"]
    return [0, *pools[:-1]]


class VGGBackbone(ConvBackbone):
    """torchvision's VGG-16 up to the last convolution, with or without batch norm; pools round up.

    Stage n ends with pool n + 1, stage 4 before the last pool: at 473 px block 2 is 60 x 60, blocks 3 and 4 are 30 x 30
    (PFENet's slices). It is never dilated.
    """

    def __init__(self, name: str, *, stem: Stem, dilated: bool, bn: BatchNorm):
        super().__init__()
        self.features = make_layers(cfgs["D"], batch_norm=BATCH_NORM[name])[:-1]
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
            elif isinstance(layer, nn.Conv2d):
                draw(layer)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.ends = [*stage_starts(name), len(self.features)]  # stage n is features[ends[n]:ends[n + 1]]
        self.channels = {2: 256, 3: 512, 4: 512}
        self.freeze(bn)

    def stage(self, number: int, x: Tensor, inner: list[Tensor] | None = None) -> Tensor:
        for layer in self.features[self.ends[number] : self.ends[number + 1]]:
            x = layer(x)
            if inner is not None and isinstance(layer, nn.Conv2d):
                inner.append(x.clone())  # the ReLU behind it works in place
        return x

    def compared_layers(self, image: Tensor) -> Iterator[Step]:
        """Compute as `steps`, with the convolutions of blocks 3 and 4 and the map of block 4, as MSANet's reference.

        image: [B, 3, H, W].
        """
        for step in self.steps(image, (3, 4)):
            yield step._replace(inner=[*step.inner, step.map]) if step.number == 4 else step


VGGS = {
    name: BackboneEntry(
        build=partial(VGGBackbone, name),
        channels=(256, 512, 512),
        strides=(8, 16, 16),
        sides=SIDES,
        layers=(3, 3, 3),
        compared_layers=7,
        mask_stride=8,  # block 3 before its pool
        own_names=partial(torchvision_names, slices=stage_starts(name)),
        first_tensor="features.0.weight",
    )
    for name in BATCH_NORM
}
