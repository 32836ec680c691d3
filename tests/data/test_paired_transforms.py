"""Joint augmentation: against the steps of the reference, and image and mask that stay together."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from fss.data.paired_transforms import DRAWS, MEAN_COLOUR, AugmentConfig, augment, choose_crop
from fss.data.transforms import fit_image
from fss.errors import ConfigError
from tests.support.packed_sets import photo

MEAN = 255 * np.array([0.485, 0.456, 0.406])
STD = 255 * np.array([0.229, 0.224, 0.225])
STILL = AugmentConfig(scale=(1, 1), rotate=0, blur=0, flip=0)


def coloured(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A mask of a few blobs, and an image that is red where the mask is 1 and green elsewhere."""
    noise = photo(seed, height, width)[..., 0]
    mask = (noise > 150).astype(np.uint8)
    mask[: height // 3] = 0  # so that up and down, left and right differ
    mask[:, : width // 4] = 0
    return np.where(mask[..., None] == 1, np.uint8([220, 0, 0]), np.uint8([0, 220, 0])), mask


def published(image, mask, size, scale, degrees, blur, flip, crop) -> tuple[np.ndarray, np.ndarray]:
    """The steps of the reference on float values, cropped at `crop` = (row, column) of the image before a flip."""
    image = cv2.resize(image.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=tuple(MEAN))
    mask = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=255)
    if blur:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    rows, columns = max(size - height, 0), max(size - width, 0)
    border = rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=tuple(MEAN))
    mask = cv2.copyMakeBorder(mask, *border, cv2.BORDER_CONSTANT, value=255)
    place = slice(crop[0], crop[0] + size), slice(crop[1], crop[1] + size)
    image, mask = image[place], mask[place]
    return (image[:, ::-1], mask[:, ::-1]) if flip else (image, mask)


@pytest.mark.parametrize("degrees", [0.0, 7.0])
@pytest.mark.parametrize("blur", [0, 1])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("height, width", [(180, 240), (129, 161)])
def test_against_the_published_steps(height, width, scale, blur, degrees):
    """At most two grey levels off on average, and masks but for their edges; the interpolation is one of two there."""
    size = 97
    image, mask = photo(3, height, width), coloured(height, width)[1]
    for seed in range(4):
        config = AugmentConfig(
            scale=(scale, scale), rotate=float(degrees > 0), degrees=degrees, blur=blur, flip=0.5, min_foreground=0
        )
        ours, labels = augment(image, mask, size, np.random.default_rng(seed), config)
        rng = np.random.default_rng(seed)  # the same draws in the same order
        rng.uniform(), rng.random()
        angle = rng.uniform(-degrees, degrees) if degrees else 0.0
        _, flip = rng.random(), rng.random() < 0.5
        room = [max(round(side * scale) - size, 0) + 1 for side in (height, width)]
        crop = (rng.random((DRAWS, 2))[0] * room).astype(int)
        theirs, expected = published(image, mask, size, scale, angle, blur, flip, crop)
        inside = expected != 255  # ours keeps corners that a rotation moves out of the frame, if there is room
        # The nearest neighbour of the reference is up to half a pixel off its own image; ours is not.
        assert (labels != expected)[inside].mean() < 0.06
        assert np.abs(ours.transpose(1, 2, 0) - theirs)[inside].mean() < 2


def test_image_and_mask_stay_together():
    image, mask = coloured(150, 200)
    config = AugmentConfig(scale=(0.8, 1.25), degrees=45, rotate=0.8, blur=0, min_foreground=0.5)
    flips, seen = set(), []
    for seed in range(60):
        crop, labels = augment(image, mask, 129, np.random.default_rng(seed), config)
        assert crop.shape == (3, 129, 129) and labels.shape == (129, 129) and crop.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1, 255}
        red = crop[0] > crop[1]
        assert (red[labels == 1]).mean() > 0.97 and (~red[labels == 0]).mean() > 0.97
        outside = labels == 255
        if outside.any():
            inner = cv2.erode(outside.astype(np.uint8), np.ones((3, 3))) == 1  # not the blend at the edge
            assert (crop[:, inner].T == MEAN_COLOUR).all()
        seen.append(labels)
        flips.add(bool((labels[:, :64] == 1).sum() > (labels[:, 65:] == 1).sum()))
    assert len(flips) == 2
    assert len({labels.tobytes() for labels in seen}) == 60


def test_no_change_is_no_change():
    image, mask = coloured(40, 60)
    crop, labels = augment(image, mask, 57, np.random.default_rng(0), STILL)
    rows = slice(8, 48)  # 17 rows of padding, 8 of them above
    assert (np.delete(labels, rows, axis=0) == 255).all()
    assert any(
        np.array_equal(crop[:, rows], image[:, x : x + 57].transpose(2, 0, 1))
        and np.array_equal(labels[rows], mask[:, x : x + 57])
        for x in range(4)
    )


def test_fitted_images_are_seen_whole():
    """The same pixels as in the evaluation, at another place."""
    image, mask = photo(1, 150, 200), coloured(150, 200)[1]
    crop, labels = augment(image, mask, 65, np.random.default_rng(0), replace(STILL, fit=True))
    fitted, frame = fit_image(image, 65, "exact")  # 49 rows
    rows = slice(8, 57)
    expected = fitted[:, :49].numpy() * STD[:, None, None] + MEAN[:, None, None]
    np.testing.assert_allclose(crop[:, rows], expected, atol=0.01)
    np.testing.assert_array_equal(labels[rows], frame.mask(mask)[:49])
    assert (np.delete(labels, rows, axis=0) == 255).all()


def test_the_same_draws_give_the_same_pixels():
    image, mask = coloured(150, 200)
    first, again, other = (augment(image, mask, 97, np.random.default_rng(seed), AugmentConfig()) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("height, width, size", [(60, 90, 41), (41, 41, 41), (41, 70, 41)])
def test_the_crop_is_the_one_that_cutting_them_out_finds(height, width, size):
    for seed in range(50):
        rng = np.random.default_rng(seed)
        foreground = np.zeros((height, width), bool)
        top, left, tall, wide = rng.integers(0, 30, 4)
        foreground[top : top + tall + 1, left : left + wide + 1] = True
        corners = rng.random((DRAWS, 2))
        found = fullest = None
        for y, x in corners:
            place = int(y * (height - size + 1)), int(x * (width - size + 1))
            cut = foreground[place[0] : place[0] + size, place[1] : place[1] + size]
            if cut.sum() >= 0.85 * foreground.sum():
                found = place
                break
            fullest = max(fullest or (0, place), (cut.sum(), place), key=lambda pair: pair[0])
        assert choose_crop(foreground, size, corners, 0.85) == (found or (place if cut.any() else fullest[1]))


def test_most_of_the_object_is_kept():
    mask = np.zeros((300, 300), np.uint8)
    mask[60:120, 160:230] = 1
    image = photo(0, 300, 300)
    kept = [
        (augment(image, mask, 161, np.random.default_rng(seed), AugmentConfig(scale=(1, 1), rotate=0))[1] == 1).sum()
        for seed in range(200)
    ]
    assert min(kept) >= 0.85 * mask.sum()  # which every third crop does


@pytest.mark.parametrize("height, width, row, column", [(40, 50, 39, 0), (48, 64, 20, 30), (900, 700, 3, 690)])
def test_a_single_pixel_survives(height, width, row, column):
    """Also a scaling that skips it, a rotation that moves it out of the image, and crops that miss it."""
    mask = np.zeros((height, width), np.uint8)
    mask[row, column] = 1
    for seed in range(40):
        config = AugmentConfig(fit=bool(seed % 2), scale=(0.3, 0.6), degrees=180, rotate=0.5)
        labels = augment(photo(0, height, width), mask, 33, np.random.default_rng(seed), config)[1]
        assert (labels == 1).sum() >= 1


def test_what_no_draw_shows_enough_of():
    """The last draw counts; if it shows nothing, the best one; if none shows anything, a crop around it."""
    far = np.zeros((100, 100), bool)
    far[0, 0] = far[99, 99] = far[99, 98] = True
    corners = np.array([[0, 0], [0.999, 0.999], [0.5, 0.5]])
    assert choose_crop(far, 10, corners, 0.85) == (90, 90)
    assert choose_crop(far, 10, corners[:1], 0.85) == (0, 0)
    assert choose_crop(far, 10, corners[2:], 0.85) == (0, 0)
    assert choose_crop(np.zeros((100, 100), bool), 10, corners, 0.85) == (0, 0)


@pytest.mark.parametrize(
    "key, value",
    [
        ("scale", (1.1, 0.9)),
        ("scale", (0, 1)),
        ("degrees", 200),
        ("blur", 1.5),
        ("min_foreground", -0.1),
    ],
)
def test_values_out_of_range(key, value):
    with pytest.raises(ConfigError, match=rf"^augment.{key} is .*: give "):
        AugmentConfig(**{key: value})
