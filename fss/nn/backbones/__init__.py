"""Frozen feature extractors of few-shot methods, behind one contract: ResNets with three stems, VGG-16, ViTs."""

from fss.nn.backbones.registry import (
    BACKBONES,
    Backbone,
    BackboneEntry,
    BackboneName,
    BatchNorm,
    Blocks,
    Layers,
    SizeRule,
    Stem,
    Step,
    check_backbone,
    check_size,
    check_stem,
    make_backbone,
)
from fss.nn.backbones.resnet import RESNETS
from fss.nn.backbones.vgg import VGGS
from fss.nn.backbones.vit import VITS

BACKBONES |= RESNETS | VGGS | VITS

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneEntry",
    "BackboneName",
    "BatchNorm",
    "Blocks",
    "Layers",
    "SizeRule",
    "Stem",
    "Step",
    "check_backbone",
    "check_size",
    "check_stem",
    "make_backbone",
]
