"""Equations 2 to 5 of MSHNet against loops over positions, and what masks without an object do."""

import math

import pytest
import torch

from fss.nn.hyperrelation import (
    GenerativeSimilarity,
    Relation,
    object_pixels,
    object_positions,
    relate,
    stack_layers,
)

B, K, LAYERS, C, H, W = 2, 3, 2, 5, 4, 6
EMPTY = 4  # the shot, of all B K, without an object


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=str)
def layers(request):
    """Query and support layers, with a position that is 0 in all channels."""
    g = torch.Generator().manual_seed(0)
    query = [torch.randn(B, C, H, W, generator=g) for _ in range(LAYERS)]
    support = [torch.randn(B * K, C, H, W, generator=g) for _ in range(LAYERS)]
    query[0][0, :, 1, 1] = 0
    return [[x.contiguous(memory_format=request.param) for x in side] for side in (query, support)]


@pytest.fixture
def positions():
    chosen = torch.rand(B * K, H * W, generator=torch.Generator().manual_seed(1)) < 0.3
    chosen[EMPTY] = False
    return chosen


def related(query: list, support: list, positions: torch.Tensor, k: int = K, **options: bool) -> Relation:
    """`relate` with the shots of an episode one after another: support layers [B K, C, H, W], positions [B K, H W]."""
    stacked = stack_layers(support)
    shots = [object_pixels(stacked[i::k], positions[i::k]) for i in range(k)]
    return relate(stack_layers(query), shots, **options)


def pixels(layer: torch.Tensor, chosen: torch.Tensor) -> list[list[float]]:
    """The feature vectors of a map [C, H, W] where chosen [H W] says so (Eq. 2)."""
    return [layer[:, i // W, i % W].tolist() for i in range(H * W) if chosen[i]]


def test_prototypes_are_plain_means_of_the_object(layers, positions):
    query, support = layers
    found = related(query, support, positions).prototypes
    assert found.shape == (B, K, LAYERS, C)
    for shot in range(B * K):
        for layer in range(LAYERS):
            mine = pixels(support[layer][shot], positions[shot])
            mean = [sum(x[c] for x in mine) / len(mine) if mine else 0.0 for c in range(C)]
            torch.testing.assert_close(found[shot // K, shot % K, layer], torch.tensor(mean))


def test_cosine_similarity_is_the_mean_positive_cosine_with_the_object(layers, positions):
    query, support = layers
    found = related(query, support, positions).cosine
    assert found.shape == (B, K, LAYERS, H, W)
    for shot in range(B * K):
        for layer in range(LAYERS):
            mine = pixels(support[layer][shot], positions[shot])
            for place in range(H * W):
                x = query[layer][shot // K, :, place // W, place % W].tolist()
                total = 0.0
                for y in mine:
                    length = math.hypot(*x) * math.hypot(*y)
                    product = sum(a * b for a, b in zip(x, y, strict=True))
                    total += max(0.0, product / length) if length else 0.0
                expected = total / len(mine) if mine else 0.0
                ours = found[shot // K, shot % K, layer, place // W, place % W].item()
                assert ours == pytest.approx(expected, abs=1e-5)


def test_cosine_similarity_can_be_left_out(layers, positions):
    query, support = layers
    with_cosine, without = related(query, support, positions), related(query, support, positions, cosine=False)
    assert without.cosine is None
    assert torch.equal(with_cosine.prototypes, without.prototypes)


def test_generative_similarity_is_a_layer_on_both_vectors_side_by_side(layers, positions):
    query, support = layers
    generative = GenerativeSimilarity(LAYERS, C)
    prototypes = related(query, support, positions).prototypes
    found = generative(generative.of_prototypes(prototypes), generative.of_queries(stack_layers(query)))
    assert found.shape == (B, K, LAYERS, H, W)
    for shot in range(B * K):
        for layer in range(LAYERS):
            weight = generative.weight[layer].flatten().tolist()  # the prototype's half first
            for place in range(H * W):
                x = query[layer][shot // K, :, place // W, place % W].tolist()
                both = prototypes[shot // K, shot % K, layer].tolist() + x
                expected = 1 / (1 + math.exp(-sum(a * b for a, b in zip(weight, both, strict=True))))
                ours = found[shot // K, shot % K, layer, place // W, place % W].item()
                assert ours == pytest.approx(expected, abs=1e-5)


def test_what_w_says_of_a_prototype_is_the_mean_of_what_it_says_of_the_object(layers, positions):
    _, support = layers
    generative = GenerativeSimilarity(LAYERS, C)
    projected = generative.of_supports(stack_layers(support)).flatten(2)  # [B K, L, H W]
    prototypes = related(support, support, positions, k=1).prototypes[:, 0]  # every shot an episode of its own
    for shot, chosen in enumerate(positions):
        mean = projected[shot][:, chosen].mean(1) if chosen.any() else torch.zeros(LAYERS)
        torch.testing.assert_close(generative.of_prototypes(prototypes[shot : shot + 1])[0], mean)


def test_positions_are_those_that_the_object_covers_above_the_average():
    mask = torch.zeros(3, 8, 12, dtype=torch.uint8)  # 2 x 2 pixels a position on 4 x 6
    mask[0, :4, :4] = 1  # covers positions (0..1, 0..1) whole
    mask[0, 4, :4] = 1  # and half of (2, 0..1)
    mask[1, 7, 11] = 1  # one pixel
    mask[2] = 255
    found = object_positions(mask, (4, 6)).view(3, 4, 6)
    assert found[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]], "the mean is 5/6"
    assert found[1].nonzero().tolist() == [[3, 5]]
    assert not found[2].any()


@pytest.mark.parametrize("size", [(60, 60), (30, 30), (15, 15)])
def test_an_object_of_one_pixel_or_of_equal_shares_is_never_lost(size):
    mask = torch.zeros(3, 473, 473, dtype=torch.uint8)
    mask[0, 200, 301] = 1
    mask[1] = 1
    mask[2, ::3, ::7] = 1  # uneven cells: shares differ in the last digits and more
    counts = object_positions(mask, size).sum(1)
    assert counts[0] >= 1 and counts[1] == size[0] * size[1] and counts[2] >= 1


def test_equal_shares_survive_the_rounding_of_their_mean():
    for cells in range(3, 40):
        mask = torch.zeros(1, 3 * cells, 3 * cells, dtype=torch.uint8)
        for n in range(7):
            mask[:, n // 3 :: 3, n % 3 :: 3] = 1  # one more pixel of every cell
            assert object_positions(mask, (cells, cells)).all()
