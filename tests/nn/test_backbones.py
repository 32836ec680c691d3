"""Frozen backbones: what they compute, against plain functions over their tensors, and that they stay frozen."""

import cv2
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from fss.errors import ConfigError
from fss.nn.backbones import make_backbone
from fss.nn.norm import Normalize
from fss.nn.weights import load_backbone
from shards.codec import decode_image
from tests.support.places import shared

CNNS = ["resnet18", "resnet50", "resnet101", "vgg16", "vgg16_bn"]
RESNETS = [("resnet18", stem) for stem in ("torchvision", "deep")] + [
    ("resnet50", stem) for stem in ("torchvision", "deep", "original")
]


def lively(name: str, **options) -> torch.nn.Module:
    """A backbone whose batch norm layers all do something, and whose maps neither vanish nor explode."""
    torch.manual_seed(0)
    backbone = make_backbone(name, **options)
    for layer in backbone.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.uniform_(0.5, 1)
            layer.bias.uniform_(-0.2, 0.2)
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return backbone


def plain_resnet(state: dict[str, Tensor], image: Tensor, stem: str, dilated: bool) -> dict[int, Tensor]:
    """Maps after layers 1 to 4, by the published descriptions, from the tensors alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        side = weight.shape[-1]
        return F.conv2d(x, weight, stride=stride, padding=dilation * (side // 2), dilation=dilation)

    x = norm(conv(image, "conv1", stride=2), "bn1").relu()
    if stem == "deep":
        x = norm(conv(x, "conv2"), "bn2").relu()
        x = norm(conv(x, "conv3"), "bn3").relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    maps = {}
    for layer in (1, 2, 3, 4):
        block = 0
        while f"layer{layer}.{block}.conv1.weight" in state:
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            rate = {3: 2, 4: 4}.get(layer, 1) if dilated else 1
            finer = rate // 2 if stride == 2 and rate > 1 else rate  # only a BasicBlock keeps the finer rate
            stride = 1 if rate > 1 else stride
            if f"{name}.conv3.weight" in state:
                at_first, at_second = (stride, 1) if stem == "original" else (1, stride)
                y = norm(conv(x, f"{name}.conv1", at_first), f"{name}.bn1").relu()
                y = norm(conv(y, f"{name}.conv2", at_second, rate), f"{name}.bn2").relu()
                y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
            else:
                y = norm(conv(x, f"{name}.conv1", stride, finer), f"{name}.bn1").relu()
                y = norm(conv(y, f"{name}.conv2", 1, rate), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
            block += 1
        maps[layer] = x
    return maps


@pytest.mark.parametrize("dilated", [True, False])
@pytest.mark.parametrize(("name", "stem"), RESNETS)
def test_resnets_compute_the_published_networks(name, stem, dilated):
    backbone = lively(name, stem=stem, dilated=dilated)
    image = torch.randn(2, 3, 57, 65)
    expected = plain_resnet(backbone.state_dict(), image, stem, dilated)
    blocks = backbone.blocks(image)
    for number, map_ in zip((2, 3, 4), blocks, strict=True):
        torch.testing.assert_close(map_, expected[number], rtol=1e-4, atol=1e-4)
        assert backbone.channels[number] == map_.shape[1]
    block2, block3 = backbone.blocks_2_3(image)
    assert torch.equal(block2, blocks.block2) and torch.equal(block3, blocks.block3)
    assert torch.equal(backbone.block4(block3), blocks.block4) and torch.equal(block3, blocks.block3)


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "torchvision"), ("resnet50", "original")])
def test_dilation_adds_positions_and_changes_none(name, stem):
    dense, strided = lively(name, stem=stem), lively(name, stem=stem, dilated=False)
    strided.load_state_dict(dense.state_dict())
    image = torch.randn(1, 3, 65, 97)
    fine, coarse = dense.blocks(image), strided.blocks(image)
    torch.testing.assert_close(fine.block3[..., ::2, ::2], coarse.block3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fine.block4[..., ::4, ::4], coarse.block4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg_is_torchvisions_with_pools_that_round_up(name):
    backbone = lively(name)
    plain = getattr(torchvision.models, name)(init_weights=False).features.eval()
    plain.load_state_dict({n.removeprefix("features."): t for n, t in backbone.state_dict().items()})
    x = image = torch.randn(1, 3, 57, 41)
    before, after = [], []
    with torch.no_grad():
        for layer in plain:
            if isinstance(layer, torch.nn.MaxPool2d):
                before.append(x)
                after.append(x := F.max_pool2d(x, 2, ceil_mode=True))
            else:
                x = layer(x)
    blocks = backbone.blocks(image)
    for ours, theirs in zip(blocks, (after[2], after[3], before[4]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [m.shape[1] for m in blocks] == [backbone.channels[n] for n in (2, 3, 4)]


@pytest.mark.parametrize("name", CNNS)
@pytest.mark.parametrize(("size", "side"), [(473, 60), (641, 81), (321, 41), (225, 29)])
def test_sizes(name, size, side):
    with torch.device("meta"):
        backbone = make_backbone(name)
        image = torch.empty(1, 3, size, size)
        first = backbone.stage(1, backbone.stage(0, image))
        block2, block3, block4 = backbone.blocks(image)
    deeper = (side + 1) // 2 if name.startswith("vgg") else side
    assert first.shape[2:] == (2 * side - 1,) * 2 and block2.shape[2:] == (side,) * 2
    assert block3.shape[2:] == block4.shape[2:] == (deeper,) * 2


@pytest.mark.parametrize("name", CNNS)
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
        ours = make_backbone(name).state_dict()
    trunk = {n: t.shape for n, t in theirs.items() if not n.startswith(("fc.", "classifier."))}
    assert {n: t.shape for n, t in ours.items()} == trunk


def test_names_of_the_deep_stem_are_semsegs():
    with torch.device("meta"):
        deep, plain = (make_backbone("resnet50", stem=stem).state_dict() for stem in ("deep", "torchvision"))
    other = [n for n in deep if n.endswith("weight") and (n not in plain or plain[n].shape != deep[n].shape)]
    assert {n: tuple(deep[n].shape) for n in other} == {
        "conv1.weight": (64, 3, 3, 3),
        "conv2.weight": (64, 64, 3, 3),
        "conv3.weight": (128, 64, 3, 3),
        "bn2.weight": (64,),
        "bn3.weight": (128,),
        "layer1.0.conv1.weight": (64, 128, 1, 1),
        "layer1.0.downsample.0.weight": (256, 128, 1, 1),
    }


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "deep"), ("vgg16_bn", "torchvision")])
def test_batch_norm_is_frozen_or_as_the_reference_has_it(name, stem):
    frozen, reference = (lively(name, stem=stem, bn=bn) for bn in ("frozen", "reference"))
    image = torch.randn(3, 3, 41, 41)
    before = {n: t.clone() for n, t in frozen.state_dict().items()}
    expected = frozen.blocks(image)
    for backbone in (frozen, reference.eval()):
        for ours, theirs in zip(backbone.blocks(image), expected, strict=True):
            assert torch.equal(ours, theirs)

    frozen.train()
    reference.train()
    assert all(map(torch.equal, frozen.blocks(image), expected))
    assert all(torch.equal(t, before[n]) for n, t in frozen.state_dict().items())
    live = reference.blocks(image)
    assert not torch.allclose(live.block2, expected.block2)
    first = next(n for n in before if n.endswith("running_mean")).removesuffix("running_mean")
    x = (
        F.conv2d(image, before["conv1.weight"], stride=2, padding=1)
        if stem == "deep"
        else F.conv2d(image, before["features.0.weight"], before["features.0.bias"], padding=1)
    )
    drifted = 0.9 * before[first + "running_mean"] + 0.1 * x.mean((0, 2, 3))
    torch.testing.assert_close(reference.state_dict()[first + "running_mean"], drifted, rtol=1e-4, atol=1e-5)
    alone = reference.blocks(image[:1]).block2
    assert not torch.allclose(alone, live.block2[:1])  # in the reference, what else is in the batch matters


@pytest.mark.parametrize("bn", ["frozen", "reference"])
def test_nothing_has_a_gradient(bn):
    backbone = lively("resnet18", bn=bn).train()
    assert not any(p.requires_grad for p in backbone.parameters())
    image = torch.randn(2, 3, 41, 41, requires_grad=True)
    for map_ in (*backbone.blocks(image), backbone.block4(backbone.blocks_2_3(image)[1].requires_grad_())):
        assert not map_.requires_grad


def test_autocast():
    backbone = lively("resnet50")
    image = torch.randn(1, 3, 57, 57)
    exact = backbone(image).block4
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone(image).block4
    assert rounded.dtype == torch.bfloat16
    assert F.cosine_similarity(rounded.float(), exact).min() > 0.99


def test_a_vgg_has_no_stems():
    with pytest.raises(ConfigError, match="stem is deep but the backbone is vgg16: leave stem out"):
        make_backbone("vgg16", stem="deep")


def auc(positive: list[float], negative: list[float]) -> float:
    """The probability that a positive lies above a negative."""
    return float(np.mean(np.array(positive)[:, None] > np.array(negative)))


def test_real_weights_find_an_object_in_another_photograph():
    """Nearness to the mean feature of an object, not of its surroundings, ranks another photograph of its class."""
    voc = shared("data/realmini/voc20")
    path = shared("data/weights/resnet50_imagenet_v1_stride_in_conv1.safetensors")
    backbones = {name: make_backbone("resnet50", stem="original") for name in ("random", "trained")}
    backbones["trained"].load_state_dict(load_backbone(path, "resnet50", "original"))

    def load(stem: str) -> tuple[Tensor, Tensor]:
        pixels = cv2.resize(decode_image((voc / "JPEGImages" / f"{stem}.jpg").read_bytes()), (161, 161))
        painted = cv2.imread(str(voc / "SegmentationClass" / f"{stem}.png")).any(2)  # in the palette 0 is black
        mask = cv2.resize(painted.astype(np.uint8), (21, 21), interpolation=cv2.INTER_NEAREST) > 0
        image = Normalize()(torch.from_numpy(pixels).permute(2, 0, 1)[None])  # [1, 3, 161, 161]
        return image, torch.from_numpy(mask)

    scores = {name: [] for name in backbones}
    for fold in range(4):
        listed = (voc / "ImageSets" / "FewShot" / f"fold{fold}.txt").read_text().split()
        (support, where), (query, truth) = (load(pair.split("__")[0]) for pair in listed[:2])
        for name, backbone in backbones.items():
            near, far = (backbone.blocks(image).block4[0] for image in (support, query))  # [C, 21, 21]
            to_class, to_rest = (
                F.cosine_similarity(far, near[:, side].mean(1)[:, None, None], dim=0) for side in (where, ~where)
            )
            nearness = to_class - to_rest  # [21, 21]
            scores[name].append(auc(nearness[truth].tolist(), nearness[~truth].tolist()))
    assert min(scores["trained"]) > 0.85
    assert np.mean(scores["trained"]) > np.mean(scores["random"]) + 0.1


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_layers_are_the_sums_before_the_last_relu_of_every_residual_block(name):
    backbone = make_backbone(name)
    image = torch.randn(2, 3, 33, 33)
    outputs, x = [], backbone.stage(0, image)
    for number in (1, 2, 3, 4):
        for block in getattr(backbone, f"layer{number}"):
            x = block(x)  # as torchvision computes it
            if number > 1:
                outputs.append(x)
    plain = backbone.blocks(image)
    found = backbone.layers(image)
    assert [len(found.inner[n]) for n in (2, 3, 4)] == [len(getattr(backbone, f"layer{n}")) for n in (2, 3, 4)]
    for ours, torchvisions in zip([t for n in (2, 3, 4) for t in found.inner[n]], outputs, strict=True):
        torch.testing.assert_close(ours.relu(), torchvisions, rtol=1e-5, atol=1e-5)
        assert ours.min() < 0
    for ours, theirs in zip(found.blocks, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_layers_of_a_vgg_are_its_convolutions_outputs():
    backbone = make_backbone("vgg16_bn")
    image = torch.randn(1, 3, 33, 33)
    outputs = []
    for layer in backbone.features[backbone.ends[2] :]:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, given, out: outputs.append(out.clone()))
    found = backbone.layers(image)
    ours = [t for number in (2, 3, 4) for t in found.inner[number]]
    assert len(ours) == 9
    for a, b in zip(ours, outputs, strict=True):
        torch.testing.assert_close(a, b)
