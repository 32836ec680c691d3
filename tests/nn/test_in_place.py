"""Layers that write over what nobody reads again: just what the plain ones give."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fss.methods.base import Alone
from fss.nn.in_place import OverwritingBatchNorm2d, OverwritingReLU, overwrite_maps
from fss.nn.norm import SyncBatchNorm2d, synchronise

LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


class Pair(Alone):
    """The first of two ranks; the other's share of every sum is as large."""

    world = 2

    def sum(self, x):
        return 2 * x


def resnets(block: type, training: bool = True) -> tuple[ResNet, ResNet]:
    """A small torchvision ResNet with batch norms that are not the identity, and its overwriting copy."""
    plain = ResNet(block, [2, 1, 1, 1], num_classes=4)
    for layer in plain.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight)
            nn.init.normal_(layer.bias)
    plain(torch.randn(4, 3, 64, 64))
    over = copy.deepcopy(plain)
    overwrite_maps(over)
    return plain.train(training), over.train(training)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_step_is_bit_for_bit_the_plain_one(block, training, layout, dtype):
    plain, over = resnets(block, training)
    image = torch.randn(4, 3, 64, 64).to(memory_format=layout)
    found = {}
    for name, net in (("plain", plain), ("over", over)):
        net.to(memory_format=layout)
        x = image.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = net(x)
        y.float().square().sum().backward()
        with torch.no_grad():
            blind = net(image.clone())
        found[name] = [y, blind, x.grad, *(p.grad for p in net.parameters()), *net.state_dict().values()]
    assert all(map(torch.equal, found["over"], found["plain"]))


@pytest.mark.parametrize("reader", [torch.sum, lambda y: y.mean((2, 3)).square().sum(), lambda y: (y * y).sum()])
def test_a_gradient_that_is_expanded_or_read_elsewhere_is_left_alone(reader):
    """What comes out of a sum is one value at many places: writing there would hit them all."""
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = {}
    for layer in (nn.ReLU(), OverwritingReLU()):
        y = layer(x + 0)
        reader(y).backward()
        found[type(layer)], x.grad = x.grad, None
    assert torch.equal(found[OverwritingReLU], found[nn.ReLU])


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients_an_input_is_overwritten(training, layout, dtype):
    over = OverwritingBatchNorm2d(5).train(training)
    x = torch.randn(3, 5, 7, 6).to(dtype, memory_format=layout)
    expected = copy.deepcopy(over).requires_grad_()(x).detach()
    with torch.no_grad():
        found = over(x)
    assert torch.equal(found, expected) and found.data_ptr() == x.data_ptr() and found.dtype == dtype


def test_gradients_are_overwritten_only_where_a_relu_alone_reads_a_batch_norm():
    """Behind the last batch norm of a block comes a sum, which hands one gradient to both of its terms."""
    _, over = resnets(Bottleneck)
    before = {name for name, layer in over.named_modules() if getattr(layer, "before_relu", False)}
    blocks = {f"layer{i}.{j}" for i in range(1, 5) for j in range(2 if i == 1 else 1)}
    assert before == {"bn1"} | {f"{block}.bn{i}" for block in blocks for i in (1, 2)}


def test_with_gradients_an_input_is_left_alone():
    over = OverwritingBatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2)
    for over.before_relu in (False, True):
        before = x.clone()
        OverwritingReLU()(over(x)).sum().backward()
        assert torch.equal(x, before) and over.weight.grad is not None


def test_ranks_are_synchronised_all_the_same():
    _, over = resnets(BasicBlock)
    synchronise(over, Pair)
    assert {type(m) for m in over.modules() if isinstance(m, nn.BatchNorm2d)} == {SyncBatchNorm2d}
