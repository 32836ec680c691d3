"""A training step makes the host wait for the device nowhere, and launches few kernels.

Counted on the device of tests.support.counted_device as rank 0 of 8, with a ResNet-50 and small images: neither number
depends on their size.
"""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from bench.traffic import CallLog
from fss.collectives import SingleProcess
from fss.data.batch import Batch, LabelBatch
from fss.methods import METHODS
from fss.methods.base import EpisodeMethod, Features, Method, Report, StepContext
from fss.methods.base_learner import BaseLearnerConfig
from fss.methods.msanet.config import BAMConfig, MSANetConfig
from fss.methods.mshnet import MSHNetConfig
from fss.methods.prior.config import PriorConfig
from fss.methods.prototype import PrototypeConfig
from fss.methods.qgnet.config import QGNetConfig
from fss.nn.norm import Normalize
from fss.train.optim import OptimConfig, build_optimizer
from tests.support.counted_device import DEVICE, Count
from tests.support.made_episodes import SIZE, episodes
from tests.support.tiny_prior import views

META_LEARNERS = ("qgnet", "msanet", "bam", "mshnet")


@pytest.fixture
def make(prior_file, base_file):
    """Name of a method, or of the prior extractor's local input -> the method on the CPU, with a ResNet-50."""

    def built(name: str) -> Method:
        place = {"size": SIZE, "backbone": "resnet50"}
        match name:
            case "qgnet":
                config = QGNetConfig(**place, prior_weights=prior_file, heads=True)
            case "msanet":
                config = MSANetConfig(**place, base_weights=base_file("resnet50"))
            case "bam":
                config = BAMConfig(**place, base_weights=base_file("resnet50"))
            case "mshnet":
                config = MSHNetConfig(**place, dilations=[1, 2])
            case "prototype":
                config = PrototypeConfig(**place)
            case "base":
                config = BaseLearnerConfig(**place)
            case local:
                config = PriorConfig(backbone="resnet50", queue=64, local_queue=64, local=local, bn_split=1)
        torch.manual_seed(0)
        method = METHODS[config.name](config)
        if name == "base":
            method.set_classes({3: "cat", 5: "dog"}, CallLog(8))
        return method

    return built


def batch(name: str) -> Batch:
    """A batch of the kind that the method is trained on."""
    if name in META_LEARNERS:
        return episodes()
    if name == "base":
        given = episodes()
        return LabelBatch(image=given.query, labels=given.query_mask, keys=given.keys, replaced=[])
    given = views(4, size=64)
    given.region_query, given.region_key = (avg_pool2d(x, 8) for x in (given.region_query, given.region_key))
    return given


KERNELS = {
    "patch": 1350,
    "region": 700,
    "none": 600,
    "base": 700,
    "qgnet": 700,
    "msanet": 800,
    "bam": 470,
    "mshnet": 1200,
}
"""Launches of a step that is not logged, at most."""


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_waits_nowhere_and_launches_few_kernels(counted, make, name):
    method = on_device(counted, make(name))
    optimizer = build_optimizer(method, OptimConfig(lr=1e-4))
    for step in range(2):  # the first makes the optimizer's state, and tables
        with counted() as count:
            take(method, optimizer, batch(name).to(DEVICE, non_blocking=True), StepContext(CallLog(8), step, 2, False))
    assert not count.waits
    assert sum(count.kernels.values()) <= KERNELS[name], count.kernels.most_common()


@pytest.mark.parametrize("name", KERNELS)
def test_steps_compute_what_they_compute_on_the_cpu(counted, make, name):
    """Losses, gradients by way of the second loss, reports, and the counters of batch norm."""
    prior = name in ("patch", "region", "none")  # whose images CallLog would not exchange
    method, expected = on_device(counted, make(name)), make(name)
    optimizers = [build_optimizer(m, OptimConfig(lr=1e-4)) for m in (method, expected)]
    near = 5e-2 if prior or name == "base" else 1e-3  # batch norm over a few values magnifies rounding
    for step in range(2):
        context = StepContext(SingleProcess() if prior else CallLog(8), step, 2)
        torch.manual_seed(step)
        with counted():
            found = take(method, optimizers[0], batch(name).to(DEVICE), context)
        torch.manual_seed(step)
        on_cpu = take(expected, optimizers[1], batch(name), context)
        assert found.keys() == on_cpu.keys()
        for key, value in on_cpu.items():
            if not key.startswith("top1/"):  # one of four
                print(key, found[key].values, value)
                torch.testing.assert_close(found[key].values, value, rtol=near, atol=near, msg=key)
    counters = [
        {key: int(t.cpu()) for key, t in m.trainable.state_dict().items() if key.endswith("num_batches_tracked")}
        for m in (method, expected)
    ]
    assert counters[0] == counters[1]
    if prior or name in ("base", "mshnet"):
        assert min(counters[0].values()) >= 2


def on_device(counted: type[Count], method: Method) -> Method:
    with counted():
        for part in (method.trainable, method.non_trainable):
            part.to(DEVICE)
    return method


def take(method: Method, optimizer: torch.optim.Optimizer, given: Batch, context: StepContext) -> Report:
    """Take a step; returns its report, and the loss."""
    loss, report = method.loss(given, context)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.after_step(context)
    return report | {"loss": loss.detach()}


@pytest.mark.parametrize("name", [*META_LEARNERS, "prototype"])
@torch.no_grad()
def test_an_evaluated_episode_is_that_of_the_cpu(counted, make, name):
    """One shot. Before the result is read, the host waits once at most, for the numbers of object pixels."""
    method, given, normalize = make(name), episodes(1), Normalize()
    inputs = normalize(given.query), normalize(given.support[:, 0]), given.support_mask[:, 0]
    expected, (features, described) = evaluated(method, *inputs)
    names = method.maps(features, [described]).keys()
    on_device(counted, method)
    with counted():
        inputs = [x.to(DEVICE) for x in inputs]
        _, (features, described) = evaluated(method, *inputs)  # makes tables
        assert method.maps(features, [described]).keys() == names
    with counted() as count:
        logits, _ = evaluated(method, *inputs)
    assert count.waits.total() <= 1, count.waits
    torch.testing.assert_close(logits.values, expected, rtol=1e-3, atol=1e-3)


def evaluated(
    method: EpisodeMethod, query: torch.Tensor, support: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, tuple[Features, Features]]:
    """The logits of an episode, and what they are computed from: the query's features, the support's description."""
    described = method.encode_support(method.encode(support), mask)
    features = method.encode(query)
    logits = method.predict(features, [described]).logits
    assert logits is not None
    return logits, (features, described)
