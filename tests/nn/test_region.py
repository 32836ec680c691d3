"""Region maps and prototypes against loops over positions, and what masks without an object do."""

import math

import pytest
import torch

from fss.nn import region
from fss.nn.region import (
    downsample_mask,
    flatten_normalize,
    guided_region_map,
    guided_similarity,
    masked_average,
    max_cosine,
    prior_region_map,
)


def features(*shape: int, seed: int = 0, signed: bool = False) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x if signed else x.relu()


def cosine(a: list[float], b: list[float]) -> float:
    product = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / product if product else 0.0


def min_max_scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(v - low) / (high - low + 1e-7) for v in values]


def positions(x: torch.Tensor) -> list[list[float]]:
    """[C, h, w] -> the feature vector of every position, row by row."""
    _, h, w = x.shape
    return [x[:, i, j].tolist() for i in range(h) for j in range(w)]


@pytest.mark.parametrize("signed", [False, True])
def test_prior_region_map_follows_equations_9_to_12(signed):
    query, prior = features(2, 7, 4, 5, signed=signed), features(2, 7, 3, 6, seed=1, signed=signed)
    ours = prior_region_map(query, prior)
    assert ours.shape == (2, 1, 4, 5)
    for b in range(2):
        best = [max(cosine(x, p) for p in positions(prior[b])) for x in positions(query[b])]
        torch.testing.assert_close(ours[b].flatten(), torch.tensor(min_max_scaled(best)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("signed", [False, True])
def test_guided_region_map_takes_the_best_masked_support_position(signed):
    query, support = features(2, 6, 4, 4, signed=signed), features(2, 6, 4, 4, seed=1, signed=signed)
    mask = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(2)).mul(2).sub(1).clamp(min=0)
    ours = guided_region_map(query, support, mask)
    for b in range(2):
        masked = positions(support[b] * mask[b])  # zero vectors outside, whose cosine is 0
        best = [max(cosine(x, s) for s in masked) for x in positions(query[b])]
        torch.testing.assert_close(ours[b].flatten(), torch.tensor(min_max_scaled(best)), atol=1e-5, rtol=1e-4)


def test_a_full_mask_keeps_negative_cosines_and_an_empty_one_gives_zeros():
    query, support = features(1, 6, 3, 3), -features(1, 6, 3, 3, seed=1)
    full, empty = torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    best = [max(cosine(x, s) for s in positions(support[0])) for x in positions(query[0])]
    found = guided_region_map(query, support, full).flatten()
    torch.testing.assert_close(found, torch.tensor(min_max_scaled(best)), atol=1e-5, rtol=1e-4)
    assert guided_region_map(query, support, empty).eq(0).all()


def test_chunks_do_not_change_the_maximum(monkeypatch):
    query, columns = flatten_normalize(features(2, 5, 6, 6)), flatten_normalize(features(2, 5, 5, 5, seed=1))
    whole = max_cosine(query, columns)
    monkeypatch.setattr(region, "COLUMNS", 4)
    torch.testing.assert_close(max_cosine(query, columns), whole, rtol=0, atol=1e-6)


def test_the_gradient_reaches_only_the_pair_that_won():
    query = torch.tensor([[[1.0, 0.2]]], requires_grad=True)
    columns = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    max_cosine(query, columns).sum().backward()
    assert query.grad.tolist() == [[[1.0, 0.0]]]
    assert columns.grad[0].tolist() == pytest.approx([1.0, 0.2]) and columns.grad[1].eq(0).all()


def test_similarities_keep_their_digits_under_autocast():
    query, prior = features(1, 64, 5, 5), features(1, 64, 5, 5, seed=1)
    expected = prior_region_map(query, prior)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(prior_region_map(query, prior), expected)


def test_stored_columns_give_the_map_of_the_masked_features():
    query, support = features(1, 6, 4, 4), features(1, 6, 4, 4, seed=1)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, 2:] = 0.4
    stored = guided_similarity(flatten_normalize(query), flatten_normalize(support)[0, mask.flatten() > 0])
    torch.testing.assert_close(stored.view(1, 1, 4, 4), guided_region_map(query, support * mask, mask))


def test_masked_average_is_the_mean_inside_with_the_area_offset():
    x = features(2, 3, 4, 5, signed=True)
    mask = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(3))
    ours = masked_average(x, mask)
    for b in range(2):
        for c in range(3):
            cells = [(i, j) for i in range(4) for j in range(5)]
            total = sum(x[b, c, i, j].item() * mask[b, 0, i, j].item() for i, j in cells)
            area = sum(mask[b, 0, i, j].item() for i, j in cells) + 0.0005
            assert ours[b, c].item() == pytest.approx(total / area, rel=1e-4, abs=1e-6)
    assert masked_average(x, torch.zeros_like(mask)).eq(0).all()


def test_downsampled_masks_count_unknown_pixels_as_background_and_align_corners():
    mask = torch.zeros(1, 17, 17, dtype=torch.uint8)
    mask[:, :, 8:] = 1
    mask[:, 16] = 255
    small = downsample_mask(mask, (3, 3))
    assert small.tolist() == [[[[0, 1, 1], [0, 1, 1], [0, 0, 0]]]]  # pixels 0, 8 and 16 of each side
