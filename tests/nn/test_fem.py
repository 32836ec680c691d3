"""The decoder against the network written out with tiled prototypes and concatenated levels, and its losses."""

import math

import pytest
import torch
from torch.nn import functional as F

from fss.nn.fem import FeatureEnrichment, bin_size, concat_middle_blocks, inner_loss, segmentation_loss


def written_out(fem: FeatureEnrichment, query, prototype, maps):
    """The same parameters in the shape of PFENet's text: everything tiled, resized and concatenated."""

    def resize(x, side):
        return F.interpolate(x, side, mode="bilinear", align_corners=True)

    h = query.shape[2]
    levels, inner = [], []
    for i, scale in enumerate(fem.bins):
        side = int(scale) if scale > 1 else int(h * scale)
        tiled = prototype[:, :, None, None].expand(-1, -1, side, side)
        x = torch.cat([F.adaptive_avg_pool2d(query, side), tiled, resize(maps, side)], 1)
        x = F.relu(F.conv2d(x, fem.merge[i].weight))
        if i:
            both = torch.cat([x, resize(levels[-1], side)], 1)
            x = F.relu(F.conv2d(both, fem.interact[i - 1].weight)) + x
        first, second = fem.refine[i][0].weight, fem.refine[i][2].weight
        x = F.relu(F.conv2d(F.relu(F.conv2d(x, first, padding=1)), second, padding=1)) + x
        inner.append(fem.inner[i](x))
        levels.append(resize(x, h))
    x = F.relu(F.conv2d(torch.cat(levels, 1), fem.join.weight))
    x = fem.smooth(x) + x
    return fem.classify(x), inner


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize(
    ("side", "bins"), [(60, [60, 30, 15, 8]), (9, [9, 5, 3, 2]), (9, [1.0, 0.5, 0.25]), (9, [6])], ids=str
)
def test_the_decoder_is_the_one_of_the_text(side, bins, maps):
    """At side 60 a level is resized twice on its way to the next one, which is not the same as once."""
    torch.manual_seed(0)
    fem = FeatureEnrichment(8, maps, bins).eval()
    query, prototype = torch.randn(2, 8, side, side).relu(), torch.randn(2, 8).relu()
    regions = torch.rand(2, maps, side, side)
    logits, inner = fem(query, prototype, regions)
    expected, expected_inner = written_out(fem, query, prototype, regions)
    assert logits.shape == (2, 2, side, side) and len(inner) == len(bins)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(inner, expected_inner, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    fem = FeatureEnrichment(8, 2, [1.0, 0.5])
    logits, inner = fem(torch.randn(2, 8, 9, 9), torch.randn(2, 8), torch.rand(2, 2, 9, 9))
    mask = torch.randint(0, 2, (2, 65, 65), dtype=torch.uint8)
    (segmentation_loss(logits, mask) + inner_loss(inner, mask)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fem.parameters())


def test_maps_of_another_size_are_resized():
    torch.manual_seed(0)
    fem = FeatureEnrichment(4, 1, [1.0]).eval()
    query, prototype, found = torch.randn(1, 4, 9, 9), torch.randn(1, 4), torch.rand(1, 1, 5, 5)
    larger = F.interpolate(found, 9, mode="bilinear", align_corners=True)
    torch.testing.assert_close(fem(query, prototype, found)[0], fem(query, prototype, larger)[0])


@pytest.mark.parametrize(("scale", "side", "cells"), [(60, 29, 60), (1.0, 60, 60), (0.125, 60, 7), (0.125, 6, 1)])
def test_levels_are_cells_or_fractions(scale, side, cells):
    assert bin_size(scale, side) == cells


def test_the_loss_leaves_unknown_pixels_out():
    logits = torch.tensor([0.3, -0.2, 1.5, 0.1]).view(1, 2, 1, 2)
    mask = torch.tensor([[[1, 255]]], dtype=torch.uint8)
    background, thing = 0.3, 1.5  # of the left pixel
    expected = math.log(math.exp(background) + math.exp(thing)) - thing
    assert segmentation_loss(logits, mask).item() == pytest.approx(expected, rel=1e-5)
    both = [logits, torch.zeros(1, 2, 1, 1)]
    assert inner_loss(both, mask).item() == pytest.approx((expected + math.log(2)) / 2, rel=1e-5)


def test_the_loss_of_a_part_of_a_batch_is_divided_by_the_number_that_is_passed():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 5, 5)
    mask = torch.randint(0, 2, (3, 9, 9), dtype=torch.uint8)
    mask[0, 2:], mask[2, :, 5] = 255, 255
    known = (mask != 255).sum()
    parts = [segmentation_loss(logits[i : i + 1], mask[i : i + 1], known) for i in range(3)]
    torch.testing.assert_close(sum(parts), segmentation_loss(logits, mask))


def test_without_a_known_pixel_loss_and_gradient_are_zero():
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    mask = torch.full((1, 9, 9), 255, dtype=torch.uint8)
    loss = segmentation_loss(logits, mask) + inner_loss([logits], mask)
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()


def test_block_three_comes_first_and_sets_the_size():
    block2, block3 = torch.rand(1, 2, 9, 9), torch.rand(1, 3, 5, 5)
    blocks_2_3 = concat_middle_blocks(block2, block3)
    torch.testing.assert_close(blocks_2_3[:, :3], block3)
    torch.testing.assert_close(blocks_2_3[:, 3:], block2[:, :, ::2, ::2])  # corners aligned: every other position
