"""MoCo v2's augmentation: the draws, and the views that each backend makes of them."""

import math
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import functional as reference

from fss.data.augment import BACKENDS, JITTER, Augmentation, Box, Fast, Strict, draw, draw_box
from shards.codec import decode_image
from shards.format import ShardError
from tests.support.packed_sets import jpeg, photo

IMAGE = photo(0, 240, 320)
WHOLE = Box(0, 0, 240, 320)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


def test_both_backends_carry_out_the_same_draw():
    for seed in range(40):
        how = draw(np.random.default_rng(seed), 240, 320, (0.2, 1))
        views = [
            BACKENDS[name](image).apply(how, 96) for name, image in (("cv2", IMAGE), ("pil", Image.fromarray(IMAGE)))
        ]
        assert views[0].dtype == np.uint8 and views[0].shape == (3, 96, 96)
        assert difference(*views) < 2, how  # on vivid noise; about 0.4 on photographs


@pytest.mark.parametrize(
    "name, strength",
    [*product(("brightness", "contrast", "saturation"), (0.6, 0.95, 1.4)), *product(("hue",), (-0.1, -0.03, 0.1))],
)
def test_jitter_is_torchvisions(name, strength):
    wanted = getattr(reference, f"adjust_{name}")(Image.fromarray(IMAGE), strength)
    found = JITTER[name](IMAGE, strength)
    assert difference(found, np.asarray(wanted)) < 1  # of vivid noise
    assert difference(found, IMAGE) > 2


@pytest.mark.parametrize(
    "change, wanted",
    [
        ({"gray": True}, lambda v: reference.rgb_to_grayscale(v, 3)),
        ({"blur": 0.1}, lambda v: v.filter(ImageFilter.GaussianBlur(0.1))),
        ({"blur": 2.0}, lambda v: v.filter(ImageFilter.GaussianBlur(2))),
        ({"flip": True}, reference.hflip),
        (
            {"jitter": (("hue", 0.1), ("contrast", 0.6))},
            lambda v: reference.adjust_contrast(reference.adjust_hue(v, 0.1), 0.6),
        ),
        (
            {"jitter": (("contrast", 0.6), ("hue", 0.1))},
            lambda v: reference.adjust_hue(reference.adjust_contrast(v, 0.6), 0.1),
        ),
    ],
)
def test_each_step_is_torchvisions(change, wanted):
    box = Box(10, 20, 150, 200)
    cropped = reference.resized_crop(Image.fromarray(IMAGE), *box, [96, 96])
    wanted = np.asarray(wanted(cropped)).transpose(2, 0, 1)
    how = Augmentation(box=box, **change)
    assert difference(Fast(IMAGE).apply(how, 96), wanted) < 1.5
    np.testing.assert_array_equal(Strict(Image.fromarray(IMAGE)).apply(how, 96), wanted)


@pytest.mark.parametrize("size", [40, 96, 224, 500])
def test_resize_is_antialiased_as_pils(size):
    box = Box(3, 5, 201, 277)
    wanted = Image.fromarray(IMAGE).crop((5, 3, 282, 204)).resize((size, size), Image.Resampling.BILINEAR)
    found = Fast(IMAGE).apply(Augmentation(box=box), size)
    assert np.abs(found.astype(int) - np.asarray(wanted).transpose(2, 0, 1)).max() <= 1


def test_draws_follow_the_recipe():
    """2,000 draws: probabilities within four standard errors, ranges respected and used, jitter in uniform order."""
    draws = [draw(np.random.default_rng(seed), 300, 400, (0.2, 1)) for seed in range(2000)]
    for probability, share in [
        (0.8, np.mean([bool(d.jitter) for d in draws])),
        (0.2, np.mean([d.gray for d in draws])),
        (0.5, np.mean([d.blur > 0 for d in draws])),
        (0.5, np.mean([d.flip for d in draws])),
        (0.25, np.mean([d.jitter[0][0] == "hue" for d in draws if d.jitter])),
    ]:
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / 1500)
    for name, low, high in [
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
        ("blur", 0.1, 2.0),
    ]:
        values = (
            [dict(d.jitter).get(name) for d in draws if d.jitter]
            if name != "blur"
            else [d.blur for d in draws if d.blur]
        )
        assert low <= min(values) < low + 0.01 * (high - low) and high - 0.01 * (high - low) < max(values) <= high
    areas = [d.box.height * d.box.width / (300 * 400) for d in draws]
    aspects = [d.box.width / d.box.height for d in draws]
    assert 0.19 < min(areas) < 0.22 and 0.9 < max(areas) <= 1
    assert 0.74 < min(aspects) < 0.78 and 1.29 < max(aspects) < 1.35
    assert all(0 <= d.box.top <= 300 - d.box.height and 0 <= d.box.left <= 400 - d.box.width for d in draws)


@pytest.mark.parametrize("size, box", [((10, 1000), Box(0, 493, 10, 13)), ((1000, 10), Box(493, 0, 13, 10))])
def test_images_too_narrow_for_any_draw_give_their_middle(size, box):
    assert draw_box(np.random.default_rng(0), *size, (0.9, 1)) == box


def test_an_augmentation_of_a_crop_is_one_of_the_image():
    frame = Box(30, 40, 100, 100)
    how = draw(np.random.default_rng(5), 100, 100, (0.5, 1))
    whole = Fast(IMAGE).apply(how.inside(frame), 64)
    np.testing.assert_array_equal(whole, Fast(np.ascontiguousarray(IMAGE[30:130, 40:140])).apply(how, 64))


def test_backends_decode_alike_and_refuse_alike():
    data = jpeg(IMAGE)
    np.testing.assert_array_equal(np.asarray(Strict.decode(data).image), decode_image(data))
    for broken in (data[: len(data) // 2], b"", b"not an image"):
        for backend in (Fast, Strict):
            with pytest.raises(ShardError, match="cannot be decoded"):
                backend.decode(broken)
