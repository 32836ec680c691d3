"""Whatever a method makes lies where its images are.

There is no second device here, so 'meta' stands for one: its tensors have shapes and no values, and torch refuses to
mix them with the CPU's as it refuses to mix a GPU's. GF-SAM decides on the CPU what is small, and cannot be tried so.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.fx.experimental import _config as symbolic
from torch.nn.functional import avg_pool2d

from fss.collectives import SingleProcess
from fss.data.batch import Batch, LabelBatch
from fss.methods import METHODS
from fss.methods.base import Method, StepContext
from fss.methods.base_learner import BaseLearnerConfig
from fss.methods.msanet.config import BAMConfig
from fss.methods.prior.config import PriorConfig
from fss.methods.prototype import PrototypeConfig
from tests.support.made_episodes import SIZE, episodes
from tests.support.tiny_prior import views

META_LEARNERS = ("qgnet", "msanet", "bam", "mshnet")


@pytest.fixture(autouse=True)
def no_values(monkeypatch):
    """Let through what asks for values: masks cover everything, and every question is answered by yes."""
    truth, autocast = torch.Tensor.__bool__, torch.autocast
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: self.is_meta or truth(self))
    monkeypatch.setattr(
        torch, "autocast", lambda device, *a, **k: nullcontext() if device == "meta" else autocast(device, *a, **k)
    )
    with symbolic.patch(meta_nonzero_assume_all_nonzero=True):
        yield


@pytest.fixture
def make(qgnet_config, msanet_config, mshnet_config):
    """Name of a method, or of the prior extractor's local input -> the method on the device."""

    def on_device(name: str) -> Method:
        small = {"size": SIZE, "backbone": "resnet18"}
        match name:
            case "qgnet":
                config = qgnet_config
            case "msanet":
                config = msanet_config()
            case "bam":
                config = msanet_config(BAMConfig)
            case "mshnet":
                config = mshnet_config
            case "prototype":
                config = PrototypeConfig(**small)
            case "base":
                config = BaseLearnerConfig(**small)
            case local:
                config = PriorConfig(backbone="resnet18", queue=64, local_queue=64, local=local)
        method = METHODS[config.name](config)
        if name == "base":
            method.set_classes({3: "cat", 5: "dog"}, SingleProcess())
        for part in (method.trainable, method.non_trainable):
            part.to("meta")
        return method

    return on_device


def batch(name: str) -> Batch:
    """A batch of the kind that the method is trained on."""
    if name in META_LEARNERS:
        return episodes(k=2)
    if name == "base":
        given = episodes()
        return LabelBatch(image=given.query, labels=given.query_mask, keys=given.keys, replaced=[])
    given = views(4, size=64)
    given.region_query, given.region_key = (avg_pool2d(x, 8) for x in (given.region_query, given.region_key))
    return given


@pytest.mark.parametrize("name", [*META_LEARNERS, "base", "patch", "region", "none"])
def test_a_step(make, name):
    method = make(name)
    loss, report = method.loss(batch(name).to("meta"), StepContext())
    assert loss.is_meta and all(value.is_meta for value in report.values())
    loss.backward()
    torch.optim.SGD(method.param_groups(), lr=0.1, momentum=0.9).step()
    method.after_step(StepContext())


@pytest.mark.parametrize("name", [*META_LEARNERS, "prototype"])
@torch.no_grad()
def test_an_evaluation(make, name):
    method, given = make(name), episodes(1, k=2).to("meta")
    query = method.encode(given.query.float())
    supports = [
        method.encode_support(method.encode(given.support[:, k].float()), given.support_mask[:, k]) for k in (0, 1)
    ]
    logits = method.predict(query, supports).logits
    assert logits.is_meta and logits.shape == (1, 2, SIZE, SIZE)
    assert all(picture.is_meta for picture in method.maps(query, supports).values())
