"""Methods take any registered backbone: its size, its channels and its layers decide, not its family."""

import pytest
import torch

from fss.errors import ConfigError
from fss.methods.base_learner import BaseLearnerConfig
from fss.methods.mshnet import MSHNet
from fss.methods.prototype import Prototype
from fss.methods.qgnet.method import QGNet
from tests.support.tiny_vits import TINY, register_tiny_vits

OPTIONS = {Prototype: {}, QGNet: {"prior_map": "off", "dim": 16}, MSHNet: {"width": 8}}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    register_tiny_vits(monkeypatch)


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_a_registered_vit_segments(kind, backbone):
    torch.manual_seed(0)
    size = 64
    method = kind(kind.Config(backbone=backbone, size=size, **OPTIONS[kind]))
    images = torch.randn(3, 1, 3, size, size)
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, 8:40, 16:48] = 1
    query = method.encode(images[0])
    if method.needs_query_encoding:
        query |= method.encode_query(images[0])
    prediction = method.predict(query, [method.encode_support(method.encode(image), mask) for image in images[1:]])
    assert prediction.logits.shape == (1, 2, size, size) and prediction.finite
    tensors, header = method.export()
    restored = kind.restore(tensors, header)
    again = restored.predict(query, [restored.encode_support(restored.encode(image), mask) for image in images[1:]])
    assert torch.equal(again.logits, prediction.logits)


@pytest.mark.parametrize("config", [*(kind.Config for kind in OPTIONS), BaseLearnerConfig], ids=lambda c: c.__name__)
def test_configurations_check_the_backbone_and_its_sizes(config):
    with pytest.raises(ConfigError, match=r"method\.backbone is resnet34: give one of resnet18, .*tiny_vit"):
        config(backbone="resnet34")
    with pytest.raises(ConfigError, match=r"method\.size is 65: give a multiple of 8, such as 64 or 72, .* tiny_vit"):
        config(backbone="tiny_vit", size=65)
    with pytest.raises(ConfigError, match=r"method\.size is 64: give a multiple of 8 plus 1, such as 65 or 57"):
        config(size=64)
