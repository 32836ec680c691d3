"""Similarity maps and points against loops over positions, in both readings, and references that are degenerate."""

import math

import pytest
import torch

from fss.errors import ConfigError
from fss.nn.alignment import SQUARE, align, aligned, choose, encode_support, min_max_scaled, prompts, unit_features
from fss.nn.gfsam_rules import READINGS, Rules
from fss.nn.region import downsample_mask

GRID, SIZE = 5, 64
CLOSE = {"atol": 2e-6, "rtol": 1e-4}


def tokens(seed: int, channels: int = 7, grid: int = GRID) -> torch.Tensor:
    return torch.randn(grid * grid, channels, generator=torch.Generator().manual_seed(seed))


def disc(x: float, y: float, radius: float) -> torch.Tensor:
    """A mask uint8 [1, SIZE, SIZE]; places and radius in pixels."""
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return ((column - x) ** 2 + (row - y) ** 2 < radius**2).byte()[None]


def normalised(x: torch.Tensor, rules: Rules) -> list[list[float]]:
    rows = x.tolist()
    if rules.channel_norm:
        norms = [math.sqrt(sum(row[c] ** 2 for row in rows)) for c in range(x.shape[1])]
        rows = [[v / n for v, n in zip(row, norms, strict=True)] for row in rows]
    return [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in rows]


def by_hand(target: torch.Tensor, references: list, rules: Rules) -> list[list[float]]:
    """S+ mean, S+ max and S- mean of every position (Eq. 1 and 2), averaged over references (tokens, mask)."""
    maps = [[0.0] * len(target) for _ in range(3)]
    for reference, mask in references:
        weight = downsample_mask(mask, (GRID, GRID)).flatten().tolist()
        if not rules.soft_mask:
            weight = [float(w >= 0.5) for w in weight]
        others = normalised(reference, rules)
        for i, row in enumerate(normalised(target, rules)):
            cosines = [sum(a * b for a, b in zip(row, other, strict=True)) for other in others]
            if rules.relu:
                cosines = [max(c, 0.0) for c in cosines]
            inside = [w * c for w, c in zip(weight, cosines, strict=True)]
            outside = [(1 - w) * c for w, c in zip(weight, cosines, strict=True)]
            area = sum(weight)
            found = sum(inside) / area, max(inside), sum(outside) / (len(weight) - area)
            for row_of_map, value in zip(maps, found, strict=True):
                row_of_map[i] += value / len(references)
    return maps


def aligned_by_ours(target: torch.Tensor, references: list, rules: Rules):
    described = [encode_support(unit_features(x, rules), mask, rules) for x, mask in references]
    return align(unit_features(target, rules), described, rules)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("shots", [1, 3])
def test_the_maps_follow_equations_1_and_2(reading, shots):
    rules = Rules(reading=reading)
    target = tokens(0)
    references = [(tokens(1 + k), disc(20 + 9 * k, 30, 16)) for k in range(shots)]
    found = aligned_by_ours(target, references, rules)
    for ours, expected in zip((found.mean, found.max, found.negative), by_hand(target, references, rules), strict=True):
        torch.testing.assert_close(ours.flatten(), torch.tensor(expected), **CLOSE)


def test_a_full_mask_keeps_negative_maxima_and_has_no_background():
    rules = Rules()
    full = torch.ones(1, SIZE, SIZE, dtype=torch.uint8)
    reference = tokens(1, channels=3)[:1].expand(GRID * GRID, -1)
    found = aligned_by_ours(0.01 * tokens(2, 3) - reference, [(reference, full)], rules)
    assert found.max.max() < 0 and found.negative.eq(0).all()


def test_the_choice_follows_equation_3():
    positive, negative = torch.tensor([0.1, 0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.9, 0.2])
    low, span = 0.1, 0.4 + 1e-6
    expected = [0, (0.5 - low) / span, 0, (0.2 - low) / span]  # M of the negatives: 0, 4/7, 1, 0
    torch.testing.assert_close(aligned(positive, negative, Rules()), torch.tensor(expected))
    without = aligned(positive, negative, Rules(negative=False))
    torch.testing.assert_close(without, (positive - low) / span)


def test_equality_counts_as_object_in_the_code_and_as_background_in_the_paper():
    x = torch.tensor([0.0, 0.5, 1.0])
    assert aligned(x, x, Rules()).count_nonzero() == 2
    assert aligned(x, x, Rules(reading="paper")).count_nonzero() == 0


def test_what_is_constant_but_for_rounding_becomes_zeros():
    noisy = 0.3 + torch.tensor([0.0, 1e-7, 6e-8])
    assert min_max_scaled(noisy).eq(0).all()
    assert min_max_scaled(torch.tensor([0.0, 1e-4]))[1] == pytest.approx(1 / 1.01)


def test_as_many_points_as_the_map_sums_to_by_column_then_row():
    select = torch.zeros(3, 3)
    select[0, 2], select[2, 0], select[1, 0], select[2, 2] = 0.9, 0.8, 0.7, 0.69  # row, column; sum 3.09
    assert choose(select.flatten(), Rules()).tolist() == [[0, 1], [0, 2], [2, 0]]
    assert choose(select.flatten(), Rules(limit=2)).tolist() == [[0, 2], [2, 0]]
    assert len(choose(select.flatten(), Rules(selection="all"))) == 4


def test_a_sum_below_one_gives_a_point_in_the_code_only_and_zero_gives_none():
    select = torch.zeros(9)
    select[5] = 0.4
    assert choose(select, Rules()).tolist() == [[2, 1]]
    assert choose(select, Rules(reading="paper")).shape == (0, 2)
    assert choose(torch.zeros(9), Rules()).shape == (0, 2)


def test_limits_and_ties():
    ones = torch.ones(196)
    assert len(choose(ones, Rules())) == 128
    assert len(choose(ones, Rules(reading="paper"))) == 196
    ones[50:60] = 2
    found = {tuple(point) for point in choose(ones, Rules(limit=11)).tolist()}
    assert len(found) == 11 and found > {(i % 14, i // 14) for i in range(50, 60)}


@pytest.mark.parametrize("similarity, name", [("mean", "mean"), ("max", "max")])
def test_the_positive_map_of_table_3(similarity, name):
    rules = Rules(similarity=similarity, negative=False)
    found = aligned_by_ours(tokens(0), [(tokens(1), disc(30, 30, 15))], rules)
    torch.testing.assert_close(found.select.flatten(), min_max_scaled(getattr(found, name).flatten()))


def test_empty_references_take_a_square_in_the_centre_only_if_all_are_empty():
    rules, empty = Rules(), torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    square, start = empty.clone(), (SIZE - SQUARE) // 2
    square[:, start : start + SQUARE, start : start + SQUARE] = 1
    target, first, second = tokens(0), tokens(1), tokens(2)
    ours = aligned_by_ours(target, [(first, empty), (second, empty)], rules)
    expected = aligned_by_ours(target, [(first, square), (second, square)], rules)
    for name in ("mean", "max", "negative", "points"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name))
    one = aligned_by_ours(target, [(first, empty), (second, square)], rules)
    alone = aligned_by_ours(target, [(second, square)], rules)
    torch.testing.assert_close(one.mean, alone.mean / 2)  # the empty one adds nothing but counts
    torch.testing.assert_close(one.max, alone.max / 2)


@pytest.mark.parametrize("reading", READINGS)
def test_an_object_that_vanishes_on_the_grid_gives_no_point(reading):
    tiny = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    tiny[:, 7:9, 7:9] = 1  # between the pixels that a 5 x 5 grid with aligned corners reads
    found = aligned_by_ours(tokens(0), [(tokens(1), tiny)], Rules(reading=reading))
    assert len(found.points) == 0 and found.max.eq(0).all() and found.mean.isfinite().all()


def test_constant_targets_and_tokens_that_are_not_finite_stay_finite():
    constant = tokens(0)[:1].expand(GRID * GRID, -1)
    assert len(aligned_by_ours(constant, [(tokens(1), disc(30, 30, 15))], Rules()).points) == 0
    broken = tokens(0)
    broken[3], broken[7, 2] = torch.inf, torch.nan
    found = aligned_by_ours(broken, [(broken, disc(30, 30, 15))], Rules())
    assert found.select.isfinite().all() and unit_features(broken, Rules())[3].eq(0).all()


def test_unknown_pixels_are_background():
    features, mask = unit_features(tokens(1), Rules()), disc(30, 30, 15)
    unknown = mask.clone()
    unknown[mask == 0] = 255
    for name, tensor in encode_support(features, mask, Rules()).items():
        torch.testing.assert_close(encode_support(features, unknown, Rules())[name], tensor)


@pytest.mark.parametrize("size, grid", [(1024, 37), (1024, 18), (256, 5)])
def test_prompts_are_corners_or_centres_of_patches(size, grid):
    points = torch.tensor([[x, y] for x in (0, 1, grid - 1) for y in (0, grid // 2)])
    corner, center = (prompts(points, grid, size, Rules(prompt=p)) for p in ("corner", "center"))
    for (x, y), a, b in zip(points.tolist(), corner.tolist(), center.tolist(), strict=True):
        assert a == [int(x * size / grid), int(y * size / grid)]
        assert b == [int((x + 0.5) * size / grid), int((y + 0.5) * size / grid)]
        assert max(b) < size


def test_presence_needs_a_position_nearer_to_the_object_than_to_the_background():
    rules, mask = Rules(presence=True, channel_norm=False), disc(20, 20, 18)
    inside = downsample_mask(mask, (GRID, GRID)).flatten() > 0.5
    object_, background, stranger = torch.eye(3, 8) * 4
    reference = torch.where(inside[:, None], object_, background) + 0.1 * tokens(1, 8)
    target = torch.where(inside[:, None], object_, background) + 0.1 * tokens(2, 8)
    absent = torch.where(inside[:, None], stranger, background) + 0.1 * tokens(3, 8)
    assert len(aligned_by_ours(target, [(reference, mask)], rules).points) > 0
    assert len(aligned_by_ours(absent, [(reference, mask)], rules).points) == 0
    always = Rules(channel_norm=False)
    assert len(aligned_by_ours(absent, [(reference, mask)], always).points) > 0


def test_a_reading_settles_what_is_not_given():
    for reading, switches in READINGS.items():
        rules = Rules(reading=reading, majority=True)
        for name, value in (switches | {"majority": True}).items():
            assert getattr(rules, name) == value
    with pytest.raises(ConfigError, match="limit is -1"):
        Rules(limit=-1)
