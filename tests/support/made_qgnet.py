"""Small QGNets."""

import torch

from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import QGNet


def build(config: QGNetConfig) -> QGNet:
    torch.manual_seed(0)
    return QGNet(config)
