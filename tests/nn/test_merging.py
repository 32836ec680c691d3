"""The merging of similarities: layer by layer against a plain reading of the figure, and what every layer is for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fss.nn.merging import ChannelAttention, InvertedPyramid, SymmetricMerging

LAYERS = (2, 3, 2)
NAMES = ("prototype", "cosine")
SIDES = (9, 5, 3)


def pyramid(names: tuple[str, ...] = NAMES, width: int = 16) -> InvertedPyramid:
    """With batch norms that have seen something, and no bias that happens to be 0."""
    torch.manual_seed(0)
    made = InvertedPyramid(names, LAYERS, width, (2, 4))
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return made.eval()


def similarities(shots: int = 2, names: tuple[str, ...] = NAMES, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        {name: torch.rand(2, shots, n, side, side, generator=g) for name in names}
        for n, side in zip(LAYERS, SIDES, strict=True)
    ]


def unit(block: nn.Sequential, x: torch.Tensor, dilation: int = 1) -> torch.Tensor:
    """A Conv block with running statistics, written out."""
    weight, norm = block[0].weight, block[1]
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2 * dilation, dilation=dilation)
    x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    return (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)


@torch.no_grad()
def test_symmetric_merging_shot_by_shot():
    block = pyramid().merging[1]
    maps = similarities(shots=3)[1]
    found = []
    for name in NAMES:
        branch, total = block.branches[name], 0
        for shot in range(3):
            total = total + unit(branch.block[1], unit(branch.block[0], maps[name][:, shot]))
        found += [unit(scale, total / 3, rate) for scale, rate in zip(branch.shot, (2, 4), strict=True)]
    x = torch.cat(found, 1)
    down, up = block.attention.mlp[0].weight, block.attention.mlp[2].weight
    mean, top = x.mean((2, 3)), x.flatten(2).max(-1).values
    gate = torch.sigmoid((mean @ down.T).clamp(min=0) @ up.T + (top @ down.T).clamp(min=0) @ up.T)
    torch.testing.assert_close(block(maps), unit(block.merge, x * gate[:, :, None, None]))


@torch.no_grad()
def test_the_pyramid_goes_from_coarse_to_fine_and_merges_the_segmentations():
    made, maps = pyramid(), similarities()
    x, inner = None, {}
    for i in (2, 1, 0):
        merged = made.merging[i](maps[i])
        if x is not None:
            merged = torch.cat([merged, F.interpolate(x, SIDES[i], mode="bilinear", align_corners=True)], 1)
        x = unit(made.levels[i].join, merged)
        for residual in made.levels[i].refine:
            x = x + unit(residual.body[1], unit(residual.body[0], x))
        inner[i] = made.levels[i].classify(x)
    parts = [F.interpolate(inner[i], SIDES[0], mode="bilinear", align_corners=True) for i in range(3)]
    expected = made.final[1](unit(made.final[0], torch.cat([x, *parts], 1)))
    logits, found = made(maps)
    torch.testing.assert_close(logits, expected)
    assert [x.shape[2:] for x in found] == [(side, side) for side in SIDES]
    for i in range(3):
        torch.testing.assert_close(found[i], inner[i])


@torch.no_grad()
@pytest.mark.parametrize("names", [NAMES, ("cosine",)])
def test_without_any_one_layer_the_output_is_another(names):
    made = pyramid(names)
    maps = similarities(names=names)
    before, _ = made(maps)
    for name, layer in made.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            continue
        kept = [p.clone() for p in layer.parameters()]
        for p in layer.parameters():
            p.zero_()
        after, _ = made(maps)
        assert (after - before).abs().max() > 1e-5, name
        for p, value in zip(layer.parameters(), kept, strict=True):
            p.copy_(value)
    assert torch.equal(made(maps)[0], before)


@torch.no_grad()
def test_shots_have_no_order_and_any_number():
    made, maps = pyramid(), similarities(shots=4)
    order = torch.tensor([2, 0, 3, 1])
    expected, _ = made(maps)
    mixed, _ = made([{name: x[:, order] for name, x in block.items()} for block in maps])
    torch.testing.assert_close(mixed, expected)
    once, _ = made([{name: x[:, :1] for name, x in block.items()} for block in maps])
    thrice, _ = made([{name: x[:, :1].expand(-1, 3, -1, -1, -1) for name, x in block.items()} for block in maps])
    torch.testing.assert_close(once, thrice)


def test_a_similarity_less_takes_its_branches_and_no_more():
    both, one = (dict(pyramid(names).named_parameters()) for names in (NAMES, ("cosine",)))
    gone = both.keys() - one.keys()
    assert gone and all("branches.prototype" in name for name in gone) and not one.keys() - both.keys()
    other_shape = {name for name in one if one[name].shape != both[name].shape}
    assert all("attention" in name or name.endswith("merge.0.weight") for name in other_shape)


def test_the_branches_are_symmetric():
    block = SymmetricMerging(NAMES, 3, 16, (2, 4, 6))
    shapes = [[p.shape for p in branch.parameters()] for branch in block.branches.values()]
    assert shapes[0] == shapes[1]


def test_attention_looks_at_mean_and_maximum():
    torch.manual_seed(0)
    attention = ChannelAttention(32)
    flat, peak = torch.full((1, 32, 4, 4), 0.5), torch.zeros(1, 32, 4, 4)
    peak[..., 0, 0] = 8  # the mean of `flat`, another maximum
    gates = [attention(x)[..., 0, 0] / x[..., 0, 0] for x in (flat, peak)]
    assert not torch.allclose(*gates)
    assert all(((0 < gate) & (gate < 1)).all() for gate in gates)
