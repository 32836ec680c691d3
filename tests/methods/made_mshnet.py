"""Small MSHNets."""

import torch

from fss.methods.mshnet import MSHNet
from fss.methods.mshnet_config import MSHNetConfig

ALONE = [{"similarities": "cosine"}, {"similarities": "prototype"}]


def build(config: MSHNetConfig) -> MSHNet:
    torch.manual_seed(0)
    return MSHNet(config)
