"""Own pictures: how they are segmented, and which are refused in a sentence."""

from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import fss
from fss.errors import UserError
from fss.inference.segmenter import Segmenter
from fss.inference.user_images import read_photograph
from fss.methods.base import Prediction
from fss.methods.gfsam import GFSAM
from tests.support.episode_toy import Colour
from tests.support.scenes import GREEN, LEFT, RED, RIGHT, alike, marked, saved, scene
from tests.support.tiny_gfsam import GRID, SIZE, STAND_INS


def test_several_supports_and_several_classes():
    """Every shot counts, and a pixel belongs to the class that it fits best."""
    segmenter = Segmenter(Colour(), device="cpu")
    one = [(scene((LEFT, RED)), marked(LEFT))]
    query = scene((LEFT, GREEN), (RIGHT, RED))
    alone = segmenter.predict(query, one)
    assert alone.classes == ("object",) and alike(alone.mask(), marked(RIGHT) > 0)
    both = segmenter.predict(query, {"red": one * 2, "green": [(scene((RIGHT, GREEN)), marked(RIGHT))]})
    assert both.classes == ("red", "green") and both.labels.dtype == np.uint8
    assert alike(both.mask("red"), marked(RIGHT) > 0) and alike(both.mask("green"), marked(LEFT) > 0)
    assert np.array_equal(both.image, query)
    strange = scene((LEFT, GREEN)), marked(LEFT)  # a shot of another colour moves the mean of the shots
    assert not np.array_equal(segmenter.predict(query, [*one, strange]).labels, alone.labels)


def test_confidence(monkeypatch):
    """The mean probability of the classes; None without a pixel of a class, and of a method without probabilities."""
    segmenter = Segmenter(Colour(), device="cpu")
    supports = [(scene((LEFT, RED)), marked(LEFT))]
    plain = segmenter.predict(scene((RIGHT, RED)), supports)
    faint = segmenter.predict(scene((RIGHT, (150, 10, 100))), supports)
    assert 0.5 < faint.confidence < plain.confidence <= 1
    assert segmenter.predict(scene(), supports).confidence is None
    monkeypatch.setattr(Colour, "has_probabilities", GFSAM.has_probabilities)
    likeness = segmenter.predict(scene((RIGHT, RED)), supports)
    assert likeness.mask().any() and likeness.confidence is None


def test_a_pixel_with_a_small_margin_belongs_to_the_class(monkeypatch):
    """The threshold of the margin is 0, so the mask is where the class outweighs the background by anything."""
    margin = torch.full((1, 1, 33, 33), -0.01)
    margin[..., :16] = 0.01
    logits = torch.cat([-margin / 2, margin / 2], dim=1)
    monkeypatch.setattr(Colour, "predict", lambda *_: Prediction(logits=logits))
    segmented = Segmenter(Colour(), device="cpu", resize="squash").predict(scene(), [(scene(), marked(LEFT))])
    assert alike(segmented.mask(), np.arange(64) < np.full((48, 1), 31))
    assert 0.5 < segmented.confidence < 0.51


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_that_names_the_picture(monkeypatch, tmp_path, bad):
    monkeypatch.setattr(Colour, "predict", lambda *_: Prediction(logits=torch.full((1, 2, 33, 33), bad)))
    query = saved(tmp_path / "query.png", scene())
    with pytest.raises(UserError, match=r"query.png cannot be segmented, as its logits are not finite"):
        Segmenter(Colour(), device="cpu").predict(query, [(scene(), marked(LEFT))])


def test_earlier_names_of_the_calls():
    segmenter = Segmenter(Colour(), device="cpu")
    supports = segmenter.learn([(scene((LEFT, RED)), marked(LEFT))])
    segmented = segmenter.find(scene((RIGHT, RED)), known=supports)
    assert segmented.sure == segmented.confidence and alike(segmented.mask(), marked(RIGHT) > 0)


def test_a_turned_photograph_goes_with_a_mask_of_what_people_see(tmp_path):
    image, exif = scene((LEFT, RED)), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = saved(tmp_path / "turned.png", np.rot90(image), exif=exif)
    assert np.array_equal(read_photograph(turned), image)
    segmenter = Segmenter(Colour(), device="cpu")
    assert alike(segmenter.predict(turned, [(turned, marked(LEFT))]).mask(), marked(LEFT) > 0)
    with pytest.raises(UserError, match=r"has 48 x 64 pixels but .*turned.png has 64 x 48: give a mask of"):
        segmenter.encode_supports([(turned, np.rot90(marked(LEFT)))])


@pytest.mark.parametrize(
    ("photograph", "mask", "words"),
    [
        (scene(), marked(LEFT) * 0, "mask the array marks no pixel"),
        (scene(), marked(LEFT)[:-1], "mask the array has 64 x 47 pixels but the array has 64 x 48"),
        (scene() / 255, marked(LEFT), "a photograph is an array float64"),
        (scene()[..., 0], marked(LEFT), r"a photograph is an array uint8 \[48, 64\]"),
        (scene(), scene(), r"a mask is an array uint8 \[48, 64, 3\]"),
        (scene(), marked(LEFT) / 255, "a mask is an array float64"),
        ("no.jpg", marked(LEFT), "no.jpg cannot be read as a picture"),
        (__file__, marked(LEFT), "test_segmenter.py cannot be read as a picture"),
    ],
)
def test_supports_that_are_refused(photograph, mask, words):
    with pytest.raises(UserError, match=words):
        Segmenter(Colour(), device="cpu").encode_supports([(photograph, mask)])


def test_no_supports_and_too_many_classes():
    segmenter = Segmenter(Colour(), device="cpu")
    for none in ([], {}, {"cat": []}):
        with pytest.raises(UserError, match="supports are empty"):
            segmenter.encode_supports(none)
    with pytest.raises(UserError, match="supports are of 255 classes: give at most 254"):
        segmenter.encode_supports({str(i): [(scene(), marked(LEFT))] for i in range(255)})


def test_loading():
    with mock.patch.multiple("fss.methods.gfsam", **STAND_INS):
        segmenter = fss.load(method="gfsam", sam="vit_t", size=SIZE, dino_size=14 * GRID, device="cpu")
    assert segmenter.size == SIZE and segmenter.method.config.majority


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "sam"}, "method is 'sam': give one of prior, "),
        ({"method": "qgnet"}, "qgnet needs training but no weights are given"),
        ({"majorities": False}, "majorities is no option of gfsam: it has "),
        ({"weights": "best.safetensors", "sam": "vit_t"}, "sam is given together with weights best.safetensors"),
        ({"size": 500, "sam": "vit_t"}, "size is 500: give a multiple of 16, such as 496"),
    ],
)
def test_what_cannot_be_loaded(options, words):
    stand_ins = mock.patch.multiple("fss.methods.gfsam", **STAND_INS)
    with stand_ins, pytest.raises(UserError, match=f"^{words}"):
        fss.load(**options)


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Segmenter(Colour()).device.type == "cpu"
    with pytest.raises(UserError, match="device is cuda but torch sees no CUDA device"):
        Segmenter(Colour(), device="cuda")
