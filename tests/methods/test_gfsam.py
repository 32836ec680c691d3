"""GF-SAM as a method: what it does with images, masks and options; its decisions are tested in tests/nn."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fss.data.transforms import Frame
from fss.errors import ConfigError
from fss.evaluate.predictor import evaluation_mode
from fss.methods.base import Features, Prediction, StepContext
from fss.methods.gfsam import FALLBACK, GFSAM, NO_POINT, GFSAMConfig
from fss.report.published import Cell, published
from tests.support.tiny_gfsam import GRID, SIZE, tiny


@pytest.fixture
def image() -> Tensor:
    """A blue ground whose brightness varies, and a red square of 2 x 2 cells, [1, 3, S, S]."""
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[:, 2] = torch.linspace(0.8, 1, SIZE)
    image[:, :, 16:48, 16:48] = torch.tensor([1.0, 0.1, 0]).view(3, 1, 1)
    return image


@pytest.fixture
def mask() -> Tensor:
    """Of the square, uint8 [1, S, S]."""
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    mask[:, 16:48, 16:48] = 1
    return mask


def supported(method: GFSAM, image: Tensor, *masks: Tensor) -> list[Features]:
    return [method.encode_support(method.encode(image), mask) for mask in masks]


def predicted(method: GFSAM, query: Tensor, supports: list[Features]) -> Prediction:
    prediction = method.predict(method.encode(query) | method.encode_query(query), supports)
    assert prediction.mask.shape == (SIZE, SIZE) and prediction.mask.dtype == torch.bool
    return prediction


def nearly_equal(predicted: Tensor, mask: Tensor) -> bool:
    """Compare masks [S, S] and [1, S, S] except for the corners of the square, where the cells decide."""
    return int((predicted != (mask[0] == 1)).sum()) <= 4 * 3


def test_the_object_is_found_where_it_is(image, mask):
    method = tiny()
    moved = image.roll((16, -16), (2, 3))
    prediction = predicted(method, moved, supported(method, image, mask))
    assert nearly_equal(prediction.mask, mask.roll((16, -16), (1, 2)))
    assert prediction.flags == ()


def test_the_score_is_the_similarity_and_leaves_the_mask(image, mask):
    """Where two classes claim a place, the one whose supports are more like the query takes it; a mask is a mask."""
    method = tiny()
    other = image.clone()
    other[:, :, 16:48, 16:48] = torch.tensor([0.8, 0.5, 0.3]).view(3, 1, 1)
    query = method.encode(image) | method.encode_query(image)
    same, similar = (method.predict(query, supported(method, support, mask)) for support in (image, other))
    assert nearly_equal(similar.mask, mask)
    assert 0 < similar.score < same.score <= 1
    frame = Frame.fit(100, 77, SIZE, "squash")
    for prediction in (same, similar):
        margin = prediction.margin
        assert margin.max() == prediction.score == -margin.min()
        assert (frame.restore(margin, "original") == frame.restore(margin.sign(), "original")).all()


def test_the_papers_figures_are_those_of_its_networks():
    assert GFSAMConfig().backbone == "dinov2_vitl14"
    assert GFSAMConfig(dino="vits14", sam="vit_t").backbone == "dinov2_vits14, SAM vit_t"
    assert GFSAMConfig(features="sam").backbone == "SAM vit_h"
    cell = Cell(method="gfsam", scheme="coco", fold=0, shots=5, backbone=GFSAMConfig().backbone, size=1024)
    assert published(cell, "miou").folds[0] == 67.1


def test_shots_are_joined(image, mask):
    method = tiny()
    supports = supported(method, image, mask, mask)
    assert nearly_equal(predicted(method, image, supports).mask, mask)


def test_no_point_is_an_empty_mask_with_a_flag(image, mask):
    method = tiny()
    supports = supported(method, image, mask)
    empty = predicted(method, torch.ones_like(image), supports)  # nothing stands out
    assert not empty.mask.any() and empty.flags == (NO_POINT,)
    assert predicted(method, image, supports).flags == ()


def test_a_mask_taken_alone_has_a_flag(image, mask, monkeypatch):
    method = tiny()
    sam = method.non_trainable["sam"]
    monkeypatch.setattr(sam, "masks", lambda embedding, points: -torch.ones(len(points), 16, 16))
    prediction = predicted(method, image, supported(method, image, mask))
    assert not prediction.mask.any() and prediction.flags == (FALLBACK,)


@pytest.mark.parametrize("value", [0, 255])
def test_a_support_without_a_pixel_of_the_class(image, mask, value):
    method = tiny()
    empty = torch.full_like(mask, value)
    assert predicted(method, image, supported(method, image, empty))  # a square in the centre stands in
    both = predicted(method, image, supported(method, image, mask, empty))
    assert nearly_equal(both.mask, mask)


def test_a_support_that_is_all_object(image, mask):
    method = tiny()
    assert predicted(method, image, supported(method, image, torch.ones_like(mask)))


def test_sam_alone_encodes_an_image_once(image, mask):
    method = tiny(features="sam")
    assert not method.needs_query_encoding and "dino" not in method.non_trainable
    features = method.encode(image)
    assert method.non_trainable["sam"].calls == 1
    method.predict(features, [method.encode_support(features, mask)])
    assert method.non_trainable["sam"].calls == 1


def test_maps_are_of_what_encode_gives(image, mask):
    method = tiny()
    maps = method.maps(method.encode(image), supported(method, image, mask))
    assert method.non_trainable["sam"].calls == 0
    for found in maps.values():
        assert found.shape == (GRID, GRID) and found.min() >= 0 and found.max() <= 1
    inside = torch.zeros(GRID, GRID, dtype=torch.bool)
    inside[1:3, 1:3] = True
    assert maps["mean similarity"][inside].min() > maps["mean similarity"][~inside].max()
    assert maps["background similarity"][inside].max() < maps["background similarity"][~inside].min()


def test_decisions_are_taken_in_float32(image, mask):
    method = tiny()
    supports = supported(method, image, mask)
    exact = method.maps(method.encode(image), supports)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = method.encode(image)
        rough = method.maps(features, supported(method, image, mask))
        assert nearly_equal(predicted(method, image, supports).mask, mask)
    for name, found in exact.items():
        torch.testing.assert_close(rough[name], found, rtol=0, atol=1e-4)


def test_switches_reach_the_decisions(image, mask):
    """The paper's cosine is no less than 0 and its channels are not scaled: other maps; no gates: every mask."""
    supports = {}
    for reading in ("reference", "paper"):
        method = tiny(reading=reading)
        supports[reading] = supported(method, image, mask)[0]["means"]
    assert not torch.allclose(supports["reference"], supports["paper"])


def test_both_encoders_are_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    tiny(compile=True)
    assert compiled == ["Identity", "Patches"]


def test_real_networks_fit_together(image, mask):
    """Random weights: MobileSAM at 64 pixels, and the smallest DINOv2."""
    torch.manual_seed(0)
    method = GFSAM(GFSAMConfig(sam="vit_t", size=SIZE, dino="vits14", dino_size=56))
    with evaluation_mode(method):
        first, second = (predicted(method, image, supported(method, image, mask)).mask for _ in range(2))
        assert torch.equal(first, second)
    caveats = method.caveats(0)
    assert len(caveats) == 3 and caveats[0].startswith("SAM has random weights")
    assert not any(parameter.requires_grad for parameter in method.non_trainable.parameters())


def test_it_has_nothing_to_train():
    with pytest.raises(TypeError, match="nothing to train"):
        tiny().loss(None, StepContext())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 512}, "method.size is 512 but SAM vit_h takes 1024 alone"),
        ({"size": 1000, "sam": "vit_t"}, "method.size is 1000: give a multiple of 16, such as 992"),
        ({"dino_size": 500}, "method.dino_size is 500: give a multiple of 14, such as 504"),
        ({"limit": -1}, "method.limit is -1: give at least 0"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(ConfigError, match=words):
        GFSAMConfig(**options)


def test_the_reading_settles_what_is_not_given():
    config = GFSAMConfig(reading="paper", majority=True)
    assert (config.limit, config.majority, config.fallback) == (0, True, False)
    assert replace(config, size=1024) == config
