"""Masks read from logits of a low resolution against the masks at full size."""

import pytest
import torch
from torch.nn import functional as F

from fss.nn.mask_logits import CHUNK, at_pixels, on_grid, shares, union

SIZES = [(16, 64), (16, 48), (16, 32), (64, 64)]  # with ratios 4, 3, 2 and 1


def smooth(n: int, side: int, seed: int = 0) -> torch.Tensor:
    """Logits [n, side, side] with regions of both signs, none exactly 0."""
    coarse = torch.randn(n, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bicubic")[:, 0] + 1e-4


def upsampled(logits: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(logits.float()[:, None], (size, size), mode="bilinear")[:, 0] > 0


@pytest.mark.parametrize("side, size", SIZES)
def test_pixels_are_those_of_the_upsampled_mask(side, size):
    logits = smooth(6, side)
    y, x = (torch.randint(0, size, (200,), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    y[:4], x[:4] = torch.tensor([0, 0, size - 1, size - 1]), torch.tensor([0, size - 1, 0, size - 1])
    assert at_pixels(logits, y, x, size).equal(upsampled(logits, size)[:, y, x])


@pytest.mark.parametrize("side, size", SIZES)
@pytest.mark.parametrize("grid", [7, 9])
def test_shares_are_the_resized_mask(side, size, grid):
    logits = smooth(6, side)
    expected = F.interpolate(upsampled(logits, size)[:, None].float(), (grid, grid), mode="bilinear").flatten(1)
    assert shares(on_grid(logits, grid, size), size).equal(expected)


@pytest.mark.parametrize("side, size", SIZES)
@pytest.mark.parametrize("n", [1, 3, CHUNK + 5])
def test_the_union_is_that_of_the_upsampled_masks(side, size, n):
    logits = smooth(n, side, seed=n) - 0.8
    chosen = torch.arange(n)[:: 1 if n < 3 else 2]
    assert union(logits, chosen, size).equal(upsampled(logits[chosen], size).any(0))


def test_noise_has_cells_of_every_kind():
    logits = torch.randn(20, 32, 32, generator=torch.Generator().manual_seed(3))
    assert union(logits, torch.arange(20), 128).equal(upsampled(logits, 128).any(0))
    assert union(logits, torch.tensor([7]), 128).equal(upsampled(logits[[7]], 128)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_logits_of_other_types(dtype):
    logits = (smooth(4, 16) * 20).to(dtype)
    assert union(logits, torch.arange(4), 64).equal(upsampled(logits, 64).any(0))


def test_a_union_of_none_is_empty_and_nan_is_outside():
    assert not union(smooth(3, 16), torch.zeros(0, dtype=torch.int64), 64).any()
    broken = smooth(1, 16).fill_(torch.nan)
    assert not union(broken, torch.tensor([0]), 64).any() and not on_grid(broken, 7, 64).any()
