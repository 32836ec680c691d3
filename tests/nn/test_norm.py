"""Batch norm over ranks, and the conversion of images."""

import copy

import pytest
import torch
from torch import nn

from bench.traffic import CallLog
from fss.collectives import SingleProcess
from fss.nn.norm import (
    Normalize,
    SyncBatchNorm2d,
    count_batches,
    has_batch_norm,
    running_statistics,
    synchronise,
)
from tests.support.counted_device import DEVICE
from tests.support.thread_ranks import run_ranks


@pytest.mark.parametrize("sizes", [[4, 4], [3, 5], [2, 1, 4]])
def test_sync_is_batch_norm_of_the_batches_together(sizes):
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    nn.init.uniform_(whole[1].weight)
    nn.init.normal_(whole[4].bias)
    copies = [copy.deepcopy(whole) for _ in sizes]
    images = torch.randn(sum(sizes), 3, 9, 9) * 3 + 50  # far from zero: naive second moments would cancel
    goal = torch.randn(sum(sizes), 4, 5, 5)

    (whole(images) * goal).sum().backward()

    def rank(collectives):
        module = copies[collectives.rank]
        synchronise(module, lambda: collectives)
        out = module(images.split(sizes)[collectives.rank])
        (out * goal.split(sizes)[collectives.rank]).sum().backward()
        return out

    outputs = run_ranks(len(sizes), rank)
    whole_again = copy.deepcopy(whole)
    torch.testing.assert_close(torch.cat(outputs), whole_again(images), atol=2e-5, rtol=1e-5)
    for i, parameter in enumerate(whole.parameters()):
        summed = sum(list(c.parameters())[i].grad for c in copies)
        torch.testing.assert_close(summed, parameter.grad, atol=2e-3, rtol=1e-4)
    for ours, theirs in zip(running_statistics(copies[0]), running_statistics(whole), strict=True):
        torch.testing.assert_close(ours, theirs)


class Idle:
    """The collectives of two ranks of which the other has no images."""

    world_size = 2
    all_reduce = staticmethod(torch.clone)


def test_sync_gradients_are_those_of_plain_batch_norm():
    layer = SyncBatchNorm2d(3)
    layer.collectives = Idle
    x = torch.randn(4, 3, 2, 2, dtype=torch.float32, requires_grad=True)
    plain = nn.BatchNorm2d(3)
    goal = torch.randn(4, 3, 2, 2)
    ours = torch.autograd.grad((layer(x) * goal).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((plain(x) * goal).sum(), [x, *plain.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_the_kernels_for_cuda_compute_plain_batch_norm(counted, relu):
    """On two ranks with the same images, whose statistics together are those of one."""
    plain = nn.BatchNorm2d(3)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    x, goal = torch.randn(2, 4, 3, 5, 5)
    x.requires_grad_()
    out = plain(x).relu() if relu else plain(x)
    expected = torch.autograd.grad((out * goal).sum(), [x, *plain.parameters()])
    with counted():
        layer = SyncBatchNorm2d(3)
        layer.load_state_dict(plain.state_dict())
        layer.to(DEVICE)
        layer.collectives = lambda: CallLog(2)
        on_device = x.detach().to(DEVICE).requires_grad_()
        ours = layer(on_device, relu=relu)
        found = torch.autograd.grad((ours * goal.to(DEVICE)).sum(), [on_device, *layer.parameters()])
        torch.testing.assert_close(ours.cpu(), out, atol=1e-5, rtol=1e-5)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.cpu(), b, atol=1e-5, rtol=1e-4)


def test_sync_evaluates_with_running_statistics_and_keeps_dtype_and_layout():
    plain = nn.Sequential(nn.BatchNorm2d(3))
    plain(torch.randn(8, 3, 4, 4))
    sync = copy.deepcopy(plain)
    synchronise(sync, Idle)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(sync.eval()(x), plain.eval()(x))
    out = sync.train()(x.to(torch.bfloat16, memory_format=torch.channels_last))
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert sync.state_dict().keys() == plain.state_dict().keys()


def test_alone_it_is_the_plain_layer():
    """Bit for bit, and by the same kernel, which is several times faster."""
    plain = nn.Sequential(nn.BatchNorm2d(3))
    alone = copy.deepcopy(plain)
    synchronise(alone, SingleProcess)
    x = torch.randn(4, 3, 5, 5)
    expected, found = plain(x), alone(x)
    count_batches(alone)
    assert torch.equal(found, expected) and found.grad_fn.name() == expected.grad_fn.name()
    assert all(map(torch.equal, alone.state_dict().values(), plain.state_dict().values()))


def test_batch_norm_is_found():
    assert has_batch_norm(nn.Sequential(nn.Sequential(nn.BatchNorm2d(2))))
    assert not has_batch_norm(nn.Sequential(nn.Conv2d(3, 2, 1)))


def test_standardise_converts_bytes_and_leaves_floats():
    image = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (image / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(Normalize()(image), expected, atol=1e-5, rtol=1e-5)
    ready = torch.randn(1, 3, 2, 2)
    assert Normalize()(ready) is ready
    assert not Normalize().state_dict()


def test_a_layer_that_averages_over_all_batches_is_not_synchronised():
    with pytest.raises(ValueError, match="0 averages over all batches: give it a momentum"):
        synchronise(nn.Sequential(nn.BatchNorm2d(3, momentum=None)), SingleProcess)
