"""Multi-similarity and attention against loops over positions, and masks without an object."""

import math

import pytest
import torch

from fss.nn.backbones import make_backbone
from fss.nn.multisim import (
    Attention,
    class_share,
    compared_layers,
    layer_count,
    layer_similarity,
    squeezed,
)
from fss.nn.region import positions_first

EPSILON = 1e-5


def similarity(query: list[list[float]], support: list[list[float]], share: list[float]) -> list[float]:
    """The map of one pair, written out: vectors by position, share of the class by position."""
    inside = [s for s in share if s > 0]
    if not inside:
        return [0.0] * len(query)
    mean = sum(inside) / len(inside)
    kept = [[s * x for x in row] for row, s in zip(support, share, strict=True) if s > 0 and s >= mean]

    def unit(row):
        length = math.sqrt(sum(x * x for x in row)) + EPSILON
        return [x / length for x in row]

    kept = [unit(row) for row in kept]
    return [sum(max(0.0, sum(a * b for a, b in zip(unit(q), s, strict=True))) for s in kept) / len(kept) for q in query]


def test_a_map_is_the_mean_positive_cosine_with_the_pixels_that_count():
    g = torch.Generator().manual_seed(0)
    b, k, c, side = 2, 2, 5, 4
    layer = torch.randn((1 + k) * b, c, side, side, generator=g)
    share = torch.rand(k * b, 1, side, side, generator=g)
    share[share < 0.3] = 0
    share[3] = 0  # the second shot of the second episode shows nothing
    found = layer_similarity(layer, share, "mask")
    assert found.shape == (b, 1, side, side)
    for episode in range(b):
        shots = [
            similarity(
                layer[episode].flatten(1).T.tolist(),
                layer[b + shot * b + episode].flatten(1).T.tolist(),
                share[shot * b + episode].flatten().tolist(),
            )
            for shot in range(k)
        ]
        expected = [sum(values) / k for values in zip(*shots, strict=True)]
        assert found[episode].flatten().tolist() == pytest.approx(expected, abs=1e-5)
    last = layer_similarity(torch.cat([layer[:b], layer[-b:]]), share[-b:], "mask")
    torch.testing.assert_close(layer_similarity(layer, share, "mask", skip=1), last)


def test_vectors_of_length_zero_are_like_nothing():
    layer = torch.zeros(2, 3, 2, 2)
    assert layer_similarity(layer, torch.ones(1, 1, 2, 2), "mask").eq(0).all()


@pytest.mark.parametrize("value", [0.1, 0.3, 1.0])
def test_a_mask_of_one_value_keeps_all_its_pixels(value):
    share = torch.zeros(49)
    share[3:40] = value
    assert squeezed(None, share).sum() == 37


def test_the_papers_rule_keeps_pixels_whose_feature_is_above_the_mean():
    rows = torch.tensor([[1.0, 3.0], [-2.0, -2.0], [0.5, 0.0], [9.0, 9.0]])
    share = torch.tensor([1.0, 1.0, 0.5, 0.0])
    # Masked and averaged over channels: 2, -2, 0.125, 0, of mean 0.03.
    assert squeezed(rows.mean(1), share).tolist() == [True, False, True, False]
    assert not squeezed(rows.mean(1), torch.zeros(4)).any()


def test_the_mask_passes_through_twice_the_first_map():
    mask = torch.zeros(1, 65, 65, dtype=torch.uint8)
    mask[0, 10:40, 20:50] = 1
    mask[0, :4] = 255

    def bilinear(x, side):
        return torch.nn.functional.interpolate(x, (side, side), mode="bilinear", align_corners=True)

    whole = (mask == 1).float()[None]
    torch.testing.assert_close(class_share(mask, "resnet50"), bilinear(bilinear(whole, 34), 17))
    torch.testing.assert_close(class_share(mask, "vgg16_bn"), bilinear(bilinear(whole, 18), 9))


@pytest.mark.parametrize(("name", "count"), [("resnet50", 13), ("resnet101", 30), ("vgg16_bn", 7), ("vgg16", 7)])
def test_every_layer_of_the_last_three_blocks_is_compared(name, count):
    assert layer_count(name) == count


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
def test_layers_are_those_of_the_backbone(name):
    torch.manual_seed(0)
    backbone = make_backbone(name)
    image = torch.randn(1, 3, 65, 65)
    seen = [(number, block, layers) for number, block, layers in compared_layers(backbone, image)]
    whole = backbone.layers(image)
    assert [number for number, *_ in seen] == [2, 3, 4]
    for (_, block, _), expected in zip(seen, whole.blocks, strict=True):
        torch.testing.assert_close(block, expected)
    expected = [layer for number in (2, 3, 4) for layer in whole.inner[number]]
    if name == "vgg16_bn":
        expected = [*whole.inner[3], *whole.inner[4], whole.blocks.block4]
    found = [layer for *_, layers in seen for layer in layers]
    assert len(found) == layer_count(name)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert positions_first(ours)[0, 1].tolist() == pytest.approx(ours[0, :, 0, 1].tolist())


def test_attention_weighs_channels_by_the_mean_of_the_masked_map():
    torch.manual_seed(0)
    attention = Attention(3, 0.0)
    support = torch.rand(1, 3, 2, 2)
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[0, :2], mask[0, 3] = 1, 255  # nearest: the upper row of the map
    pooled = support[0, :, 0].sum(1) / 4  # over all four positions, not the two of the mask
    first, second = attention.gate[0], attention.gate[2]
    gate = torch.sigmoid(second.weight @ torch.relu(first.weight @ pooled + first.bias) + second.bias)
    torch.testing.assert_close(attention(support, mask)[0], gate[:, None, None] * support[0])
