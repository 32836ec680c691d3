"""Every registered backbone keeps the contract; and what is known of it before it is built is true of it."""

import pytest
import torch
from safetensors.torch import save_file

from fss.errors import ConfigError, WeightsError
from fss.nn.backbones import BACKBONES, SizeRule, check_backbone, check_size, check_stem, make_backbone
from fss.nn.multisim import class_share, compared_layers
from fss.nn.pspnet import PSPNet
from fss.nn.weights import load_backbone
from tests.support.tiny_vits import TINY, register_tiny_vits

REAL = [
    name for name in BACKBONES if not name.startswith("dinov2_vitb")
]  # the others have the same code, 4 times as wide
CASES = [(name, stem) for name in REAL for stem in BACKBONES[name].stems] + [(name, "torchvision") for name in TINY]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    register_tiny_vits(monkeypatch)


@pytest.mark.parametrize(("name", "stem"), CASES)
def test_an_entry_is_true_of_its_backbone(name, stem):
    entry = BACKBONES[name]
    multiple = entry.sides.multiple * max(1, 32 // entry.sides.multiple)
    height, width = multiple + entry.sides.plus, 2 * multiple + entry.sides.plus
    torch.manual_seed(0)
    backbone = make_backbone(name, stem=stem)
    image = torch.randn(2, 3, height, width)

    blocks = backbone(image)
    for map_, channels, stride, number in zip(blocks, entry.channels, entry.strides, (2, 3, 4), strict=True):
        size = tuple((side - entry.sides.plus + stride - 1) // stride + entry.sides.plus for side in (height, width))
        assert map_.shape == (2, channels, *size) and backbone.channels[number] == channels
        assert map_.isfinite().all() and not map_.requires_grad

    block2, block3 = backbone.blocks_2_3(image)
    assert torch.equal(block2, blocks.block2) and torch.equal(block3, blocks.block3)
    assert torch.equal(backbone.block4(block3), blocks.block4) and torch.equal(block3, blocks.block3)
    masked = backbone.block4(block3 * (torch.arange(block3.shape[3]) % 2))
    assert masked.shape == blocks.block4.shape and not torch.equal(masked, blocks.block4)

    layers = backbone.layers(image)
    assert tuple(len(layers.inner[number]) for number in (2, 3, 4)) == entry.layers
    for number, map_ in zip((2, 3, 4), layers.blocks, strict=True):
        torch.testing.assert_close(map_, blocks[number - 2], rtol=1e-5, atol=1e-5)
        assert all(layer.shape[:2] == map_.shape[:2] for layer in layers.inner[number])

    compared = list(compared_layers(backbone, image))
    assert [number for number, *_ in compared] == [2, 3, 4]
    assert sum(len(some) for *_, some in compared) == entry.compared_layers
    assert not any(layer.requires_grad for *_, some in compared for layer in some)


@pytest.mark.parametrize(("name", "stem"), CASES)
def test_backbones_are_frozen_in_training_mode_too(name, stem):
    with torch.device("meta"):
        backbone = make_backbone(name, stem=stem)
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.train()
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize("name", BACKBONES)
def test_other_sizes_are_refused_with_the_nearest(name):
    sides = BACKBONES[name].sides
    for size in range(33, 133):
        if sides.fits(size):
            check_size("method.size", name, size)
            continue
        near, other = sides.nearest(size)
        assert abs(near - size) <= abs(other - size) < sides.multiple and sides.fits(near) and sides.fits(other)
        with pytest.raises(
            ConfigError, match=rf"method\.size is {size}: give .*, such as {near} or {other}, .* {name}"
        ):
            check_size("method.size", name, size)


def test_the_sentence_on_a_size():
    with pytest.raises(ConfigError) as error:
        check_size("eval.size", "resnet50", 100)
    assert (
        str(error.value)
        == "eval.size is 100: give a multiple of 8 plus 1, such as 97 or 105, for the backbone resnet50"
    )
    assert str(SizeRule(14)) == "a multiple of 14" and SizeRule(14).nearest(3) == (14, 28)
    assert not SizeRule(8, 1).fits(1) and not SizeRule(14).fits(0)


def test_unknown_backbones_and_stems_are_refused():
    for refused in (lambda: check_backbone("method.backbone", "resnet34"), lambda: make_backbone("resnet34")):
        with pytest.raises(ConfigError, match=r"backbone is resnet34: give one of resnet18, .*dinov2_vits14"):
            refused()
    check_backbone("method.backbone", "tiny_vit")
    with pytest.raises(ConfigError, match=r"method\.stem is deep but the backbone is tiny_vit: leave stem out"):
        check_stem("method.stem", "tiny_vit", "deep")


@pytest.mark.parametrize("name", TINY)
def test_blocks_of_a_vit_are_the_patch_tokens_after_thirds_of_its_layers(name):
    torch.manual_seed(0)
    backbone = make_backbone(name).requires_grad_(False)
    for parameter_name, parameter in backbone.named_parameters():
        if parameter_name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.3, 1)  # they begin as 1e-5, which would hide all layers
    patch, (first, second, _) = TINY[name].patch, TINY[name].ends
    image = torch.randn(2, 3, 3 * patch, 5 * patch)  # not the size of the position embedding
    taken = backbone.vit.forward_intermediates(image, norm=False, intermediates_only=True)
    assert taken[0].shape == (2, TINY[name].width, 3, 5)
    layers = backbone.layers(image)
    torch.testing.assert_close(layers.blocks.block2, taken[first - 1])
    torch.testing.assert_close(layers.blocks.block3, taken[second - 1])
    for ours, theirs in zip(layers.inner[2] + layers.inner[3], taken, strict=False):
        torch.testing.assert_close(ours, theirs)
    tokens = layers.blocks.block3.flatten(2).mT
    for block in backbone.vit.blocks[second:]:
        tokens = block(tokens)
    torch.testing.assert_close(layers.blocks.block4, tokens.mT.view_as(layers.blocks.block4))
    assert torch.nn.functional.cosine_similarity(layers.blocks.block4, taken[-1], dim=1).mean() > 0.5


def test_a_vit_learns_inside_a_pspnet():
    torch.manual_seed(0)
    network = PSPNet("tiny_vit", "torchvision", classes=3)
    network.learn()
    image = torch.randn(2, 3, 48, 48)
    logits = network(image)
    assert logits.shape == (2, 4, 6, 6)
    logits.square().sum().backward()
    unused = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert not unused


def test_class_shares_have_the_side_of_the_first_map():
    mask = torch.randint(0, 2, (2, 64, 64), dtype=torch.uint8)
    assert class_share(mask, "tiny_vit").shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", TINY)
def test_weights_of_a_vit(tmp_path, name):
    torch.manual_seed(0)
    state = {n.removeprefix("vit."): torch.rand(t.shape) for n, t in make_backbone(name).state_dict().items()}
    extra = {"norm.weight": torch.ones(4), "norm.bias": torch.zeros(4), "head.weight": torch.zeros(9, 4)}
    files = {"timm.safetensors": state | extra, "official.pth": official(state) | extra}
    save_file(files["timm.safetensors"], tmp_path / "timm.safetensors")
    torch.save(files["official.pth"], tmp_path / "official.pth")
    for file in files:
        read = load_backbone(tmp_path / file, name)
        make_backbone(name).load_state_dict(read)
        for tensor_name, tensor in state.items():
            torch.testing.assert_close(read[f"vit.{tensor_name}"], tensor)
    with pytest.raises(WeightsError, match=f"the weights of a {name} but backbone is resnet18: set backbone to {name}"):
        load_backbone(tmp_path / "timm.safetensors", "resnet18")
    del state["blocks.1.attn.qkv.bias"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=rf"like a {name} but 1 of .* vit\.blocks\.1\.attn\.qkv\.bias first"):
        load_backbone(tmp_path / "cut.pth", name)


def official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as DINOv2's own checkpoints arrange them."""
    state = dict(state) | {"mask_token": torch.zeros(1, 4)}
    if "reg_token" in state:
        place = torch.rand_like(state["cls_token"])  # of the class token, in the position embedding
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - place
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    return state
