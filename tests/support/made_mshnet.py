"""Small MSHNets."""

import torch

from fss.methods.mshnet import MSHNet, MSHNetConfig

ALONE = [{"similarities": "cosine"}, {"similarities": "prototype"}]


def build(config: MSHNetConfig) -> MSHNet:
    torch.manual_seed(0)
    return MSHNet(config)
