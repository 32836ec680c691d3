"""Exports that methods are built from, and configs of small methods."""

from dataclasses import fields, replace

import pytest
import torch

from fss.methods.msanet.config import EnsembleConfig, MSANetConfig
from fss.methods.mshnet import MSHNetConfig
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from fss.methods.qgnet.config import QGNetConfig
from fss.nn.exports import save_export
from tests.support.made_episodes import SIZE
from tests.support.made_msanet import save_base


@pytest.fixture(scope="session")
def prior_file(tmp_path_factory):
    """A prior extractor's export, as launch/pretrain_prior.py writes it."""
    torch.manual_seed(1)
    tensors, header = PriorExtractor(PriorConfig(backbone="resnet18", dim=8, queue=16, local_queue=16)).export()
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_export(path, tensors, replace(header, epochs=3.0, images_seen=2400))
    return str(path)


@pytest.fixture(scope="session")
def base_file(tmp_path_factory):
    """Backbone -> the file of a base learner."""
    folder = tmp_path_factory.mktemp("base")

    def make(backbone: str) -> str:
        path = folder / f"{backbone}.safetensors"
        if not path.exists():
            save_base(path, backbone)
        return str(path)

    return make


@pytest.fixture
def msanet_config(base_file):
    """Options -> config of an MSANet, or of the class given, that draws nothing at random."""

    def make(kind: type[EnsembleConfig] = MSANetConfig, *, backbone: str = "resnet18", **options) -> EnsembleConfig:
        off = {field.name: 0.0 for field in fields(kind) if field.name.endswith("_dropout")}
        weights = {"base_weights": base_file(backbone)}
        return kind(**{"size": SIZE, "backbone": backbone, "dim": 16, **off, **weights, **options})

    return make


@pytest.fixture
def qgnet_config(prior_file) -> QGNetConfig:
    return QGNetConfig(
        size=SIZE,
        backbone="resnet18",
        prior_weights=prior_file,
        dim=16,
        bins=[1.0, 0.5],
        reduction_dropout=0.0,
        classifier_dropout=0.0,
    )


@pytest.fixture
def mshnet_config() -> MSHNetConfig:
    """Scales of 9 x 9, 5 x 5 and 3 x 3 positions."""
    return MSHNetConfig(size=SIZE, backbone="resnet18", width=16, dilations=[1, 2])
