"""Exports that methods are built from."""

import pytest
import torch

from fss.methods.prior import PriorExtractor
from fss.methods.prior_config import PriorConfig
from fss.nn.weights import save_export


@pytest.fixture(scope="session")
def prior_file(tmp_path_factory):
    """A prior extractor's export, as launch/pretrain_prior.py writes it."""
    torch.manual_seed(1)
    tensors, header = PriorExtractor(PriorConfig(backbone="resnet18", dim=8, queue=16, local_queue=16)).export()
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_export(path, tensors, header | {"epochs": "3.0", "images_seen": "2400"})
    return str(path)
