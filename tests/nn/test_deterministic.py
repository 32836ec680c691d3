"""The forms that add in one order equal torch's own, and are taken only where a gradient needs them."""

import pytest
import torch
from torch.nn import functional as F

from fss.nn.deterministic import adaptive_average, bilinear, summed_cross_entropy
from fss.nn.region import IGNORE
from fss.numerics import numerics

SIZES = [
    ((7, 9), (13, 5)),
    ((13, 5), (7, 9)),
    ((1, 6), (5, 1)),
    ((9, 9), (9, 9)),
    ((60, 31), (473, 241)),
    ((3, 1), (1, 1)),
]
OWN = {
    bilinear: lambda x, size: F.interpolate(x, size=size, mode="bilinear", align_corners=True),
    adaptive_average: F.adaptive_avg_pool2d,
}


@pytest.mark.parametrize("operation", OWN, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_values_and_gradients_equal_those_of_torch(operation, old, new):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *old, requires_grad=True)
    weight = torch.randn(2, 3, *new)
    own = OWN[operation](x, new)
    [expected] = torch.autograd.grad(own, x, weight)
    with numerics(deterministic=True):
        result = operation(x, new)
        [gradient] = torch.autograd.grad(result, x, weight)
    scale = 1e-6 * max(old)  # rounding of the positions between which torch interpolates
    assert torch.allclose(result, own, rtol=1e-5, atol=scale)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=scale * expected.abs().max())
    assert "mmbackward" in graph(result) and "mmbackward" not in graph(own)
    assert torch.equal(operation(x, new), own)


def graph(x: torch.Tensor) -> str:
    """The names of the nodes from a result to its leaves, in small letters."""
    names, open_nodes = [], [x.grad_fn]
    while open_nodes:
        if node := open_nodes.pop():
            names.append(type(node).__name__)
            open_nodes += [other for other, _ in node.next_functions]
    return " ".join(names).lower()


@pytest.mark.parametrize("operation", OWN, ids=lambda operation: operation.__name__)
def test_without_a_gradient_the_result_is_torchs_own_to_the_bit(operation):
    x = torch.randn(2, 3, 7, 9)
    with numerics(deterministic=True):
        assert torch.equal(operation(x, (13, 5)), OWN[operation](x, (13, 5)))
        with torch.no_grad():
            assert torch.equal(operation(x.requires_grad_(), (13, 5)), OWN[operation](x, (13, 5)))


@pytest.mark.parametrize("operation", OWN, ids=lambda operation: operation.__name__)
def test_bf16_is_resized_in_float32(operation):
    x = torch.randn(2, 3, 7, 9).bfloat16().requires_grad_()
    with numerics(deterministic=True), torch.autocast("cpu", torch.bfloat16):
        result = operation(x, (13, 5))
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float(), OWN[operation](x.float(), (13, 5)), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 17])
def test_cross_entropy(classes):
    torch.manual_seed(0)
    logits = (8 * torch.randn(2, classes, 9, 7)).requires_grad_()
    target = torch.randint(classes, (2, 9, 7))
    target[:, :2] = IGNORE
    own = summed_cross_entropy(logits, target, IGNORE)
    assert torch.equal(own, F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum"))
    with numerics(deterministic=True):
        loss = summed_cross_entropy(logits, target, IGNORE)
        assert summed_cross_entropy(logits, torch.full_like(target, IGNORE), IGNORE) == 0
    assert torch.allclose(loss, own, rtol=1e-6)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, own)]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7) and not gradients[0][:, :, :2].any()


def test_an_impossible_class_at_an_ignored_pixel_gives_no_nan():
    logits = torch.tensor([0.0, -torch.inf]).view(1, 2, 1, 1).repeat(1, 1, 1, 2).requires_grad_()
    with numerics(deterministic=True):
        loss = summed_cross_entropy(logits, torch.tensor([[[0, IGNORE]]]), IGNORE)
    assert loss == 0 and torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_matrices_are_made_once(counted):
    from tests.support.counted_device import DEVICE

    with counted():
        x = torch.randn(1, 2, 5, 7).to(DEVICE)
        x.requires_grad_()
    kernels = []
    for _ in range(2):
        with numerics(deterministic=True), counted() as count:
            bilinear(x, (11, 3))
            adaptive_average(x, (2, 3))
        assert not count.waits
        kernels.append(count.kernels.total())
    assert kernels[1] < kernels[0]
