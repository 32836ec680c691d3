"""With run.deterministic a training step runs no operation for which torch has no deterministic form on CUDA."""

import re

import pytest
from torch.nn.functional import avg_pool2d

from fss.collectives import SingleProcess
from fss.data.batch import Batch, LabelBatch
from fss.methods import METHODS
from fss.methods.base import Method, StepContext
from fss.methods.base_learner import BaseLearnerConfig
from fss.methods.msanet.config import BAMConfig
from fss.methods.prior.config import PriorConfig
from fss.numerics import numerics
from tests.support.counted_device import DEVICE
from tests.support.made_episodes import SIZE, episodes
from tests.support.tiny_prior import views

NOT_DETERMINISTIC = re.compile(
    r"aten\.("
    r"_?upsample_(linear1d|bilinear2d|bicubic2d|trilinear3d|gen2d)(_aa)?_backward|"
    r"_?adaptive_(avg|max)_pool[23]d_backward|avg_pool3d_backward|max_pool3d_with_indices_backward|"
    r"fractional_max_pool[23]d_backward|max_unpool[23]d|nll_loss2d_(forward|backward)|reflection_pad[123]d_backward|"
    r"replication_pad[123]d_backward|_ctc_loss_backward|_embedding_bag|embedding_bag|put_?|histc|_histc|"
    r"grid_sampler_[23]d_backward|scatter_reduce_?|index_reduce_?|kthvalue|median\.dim|nanmedian\.dim|"
    r"scaled_dot_product_(flash|efficient)_attention_backward|_efficient_attention_backward"
    r")(\.|$)"
)
"""Operations, as in `Count.kernels`, for which torch.use_deterministic_algorithms raises RuntimeError on CUDA by
its documentation, and attention, of which it warns. What acts deterministically under it (index_put, index_add, gather,
scatter_add, cumsum, the convolutions of cuDNN) is not among them. Max-pooling in two dimensions adds in one order."""

RESIZE, LOSS, POOL = "upsample_bilinear2d_backward", "nll_loss2d_backward", "_adaptive_avg_pool2d_backward"
FOUND = {
    "qgnet": {RESIZE, LOSS, POOL},
    "mshnet": {RESIZE, LOSS},
    "msanet": {RESIZE, LOSS},
    "bam": {RESIZE, LOSS},
    "base": {RESIZE, LOSS, POOL},
    "patch": set(),
    "region": set(),
    "none": set(),
}
"""Method, or the prior extractor's local input -> which of them a backward pass has without the option."""


@pytest.fixture
def make(counted, qgnet_config, msanet_config, mshnet_config):
    """Name as in FOUND -> the method on the device."""

    def on_device(name: str) -> Method:
        match name:
            case "qgnet":
                config = qgnet_config
            case "msanet":
                config = msanet_config()
            case "bam":
                config = msanet_config(BAMConfig)
            case "mshnet":
                config = mshnet_config
            case "base":
                config = BaseLearnerConfig(size=SIZE, backbone="resnet18")
            case local:
                config = PriorConfig(backbone="resnet18", queue=64, local_queue=64, local=local)
        with counted():
            method = METHODS[config.name](config)
            if name == "base":
                method.set_classes({3: "cat", 5: "dog"}, SingleProcess())
            for part in (method.trainable, method.non_trainable):
                part.to(DEVICE)
        return method

    return on_device


def batch(name: str) -> Batch:
    """A batch of the kind that the method is trained on."""
    if name == "base":
        given = episodes(2)
        return LabelBatch(image=given.query, labels=given.query_mask, keys=given.keys, replaced=[])
    if name in METHODS:
        return episodes(2)
    given = views(4, size=64)
    given.region_query, given.region_key = (avg_pool2d(x, 8) for x in (given.region_query, given.region_key))
    return given


def step(method: Method, name: str, counted) -> set[str]:
    """Carry out one step; returns the operations in NOT_DETERMINISTIC that ran, without 'aten.' and the overload."""
    context = StepContext(step=0, total_steps=2)
    with counted() as count:
        loss, _ = method.loss(batch(name).to(DEVICE, non_blocking=True), context)
        loss.backward()
        method.after_step(context)
    assert any("convolution_backward" in kernel for kernel in count.kernels), "the backward pass was not counted"
    return {kernel.split(".")[1] for kernel in count.kernels if NOT_DETERMINISTIC.match(kernel)}


@pytest.mark.parametrize("name", FOUND)
def test_a_training_step(name, make, counted):
    assert {kernel for kernel in step(make(name), name, counted) if "backward" in kernel} == FOUND[name]
    with numerics(deterministic=True):
        assert step(make(name), name, counted) == set()
