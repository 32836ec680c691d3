"""Small QGNets."""

import torch

from fss.methods.qgnet import QGNet
from fss.methods.qgnet_config import QGNetConfig


def build(config: QGNetConfig) -> QGNet:
    torch.manual_seed(0)
    return QGNet(config)
