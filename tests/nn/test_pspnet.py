"""The base learner's network: its head against the plain pyramid, what is frozen, what is trained."""

import pytest
import torch
from torch.nn import functional as F

from fss.nn.norm import running_statistics
from fss.nn.pspnet import PSPNet


def network(backbone: str = "resnet18", classes: int = 3, dropout: float = 0.1) -> PSPNet:
    torch.manual_seed(0)
    return PSPNet(backbone, "torchvision", classes, dropout)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (9, 12), (5, 6)])
@pytest.mark.parametrize("training", [False, True])
def test_the_head_is_the_pyramid_then_the_convolution(height, width, training):
    """Outputs, gradients and running statistics of the formulation that never scales the pyramid up."""
    head = network(dropout=0).head.train(training)
    for statistic in running_statistics(head):
        statistic.uniform_(0.5, 1.5)
    block4 = torch.randn(3, 512, height, width).relu()
    found, plain = block4.clone().requires_grad_(), block4.clone().requires_grad_()
    before = [statistic.clone() for statistic in running_statistics(head)]
    ours = head(found)
    ours.square().sum().backward()
    ours_grad = {name: p.grad.clone() for name, p in head.named_parameters()}
    ours_statistics = [statistic.clone() for statistic in running_statistics(head)]

    head.zero_grad()
    for statistic, value in zip(running_statistics(head), before, strict=True):
        statistic.copy_(value)
    expected = head.classify(F.relu(head.norm(head.reduce(head.ppm(plain)))))
    expected.square().sum().backward()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.grad, plain.grad, rtol=1e-4, atol=1e-4)
    for name, p in head.named_parameters():
        torch.testing.assert_close(ours_grad[name], p.grad, rtol=1e-4, atol=1e-3 * p.grad.abs().max().item())
    torch.testing.assert_close(ours_statistics, running_statistics(head))


@pytest.mark.parametrize(("backbone", "pyramid"), [("resnet50", 4096), ("vgg16_bn", 1024)])
def test_widths_are_those_of_the_published_network(backbone, pyramid):
    with torch.device("meta"):
        head = PSPNet(backbone, "torchvision", 15).head
    assert head.reduce.weight.shape == (512, pyramid, 3, 3) and head.reduce.bias is None
    assert head.classify.weight.shape == (16, 512, 1, 1) and head.classify.bias is not None


def test_frozen_until_it_learns():
    net = network().train()
    before = [statistic.clone() for statistic in running_statistics(net.backbone)]
    image = torch.randn(2, 3, 33, 33)
    net(image).sum().backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in net.head.parameters())
    torch.testing.assert_close(running_statistics(net.backbone), before)

    net.learn()
    net(image).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.backbone.parameters())
    after = running_statistics(net.backbone)
    assert not any(torch.equal(one, other) for one, other in zip(after, before, strict=True))
    frozen = [statistic.clone() for statistic in after]
    net.eval()(image)
    torch.testing.assert_close(running_statistics(net.backbone), frozen)


def test_the_forward_pass_is_that_of_the_frozen_use():
    net = network().eval()
    image = torch.randn(1, 3, 49, 33)
    with torch.no_grad():
        torch.testing.assert_close(net(image), net.head(net.backbone(image).block4))
