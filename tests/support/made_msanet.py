"""Small MSANets and BAMs over a base learner with random weights."""

from pathlib import Path

import torch

from fss.methods import METHODS
from fss.methods.msanet.config import EnsembleConfig
from fss.methods.msanet.method import MSANet
from fss.nn.exports import ExportHeader, save_export
from fss.nn.pspnet import PSPNet

CLASSES = {1: "cat", 4: "dog", 6: "bus"}  # the made-up episodes are of class 1


def save_base(path: Path, backbone: str) -> None:
    """A base learner's file as launch/train_base.py writes it."""
    torch.manual_seed(1)
    classes = {str(class_id): name for class_id, name in CLASSES.items()}
    header = ExportHeader(method="base", backbone=backbone, stem="torchvision", classes=classes)
    save_export(path, PSPNet(backbone, "torchvision", len(CLASSES)).state_dict(), header)


def build(config: EnsembleConfig) -> MSANet:
    """With an ensemble, and weights of shots, that do something."""
    torch.manual_seed(0)
    method = METHODS[config.name](config)
    learner = method.trainable["learner"]
    with torch.no_grad():
        learner.ensemble.adjust.copy_(torch.tensor([0.9, 0.2]))
        learner.ensemble.suppress.copy_(torch.tensor([0.8, 0.4]))
        for parameter in learner.weights.parameters():
            parameter.uniform_(0.1, 1)
    return method
