"""What is read of the pictures that a user has."""

import numpy as np
import pytest
from PIL import Image

from fss.inference.user_images import read_mask, read_photograph
from tests.support.scenes import LEFT, RED, RIGHT, alike, marked, saved, scene


def rgba(mask: np.ndarray) -> np.ndarray:
    """White everywhere, the mask is in the alpha channel."""
    return np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask])


def index(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette(list(range(256)) * 3)
    return image


@pytest.mark.parametrize(
    "picture",
    [
        marked(LEFT),
        marked(LEFT, 1),
        index(marked(LEFT, 3)),
        marked(LEFT, 200).astype(np.uint16),
        np.dstack([marked(LEFT), marked(()) * 0, marked(()) * 0]),
        rgba(marked(LEFT)),
        marked(LEFT) > 0,
    ],
    ids=["0/255", "0/1", "index", "16 bits", "colour", "alpha", "1 bit"],
)
def test_masks_of_every_kind(picture, tmp_path):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), marked(LEFT, 1))


@pytest.mark.parametrize("kind", [index, Image.fromarray])
def test_255_beside_classes_is_unknown(kind, tmp_path):
    """As PASCAL VOC's label maps have it, with a palette and as grey."""
    labels = marked(LEFT, 12)
    labels[RIGHT] = 255
    kind(labels).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), marked(LEFT, 1) + marked(RIGHT, 255))


def test_soft_edges_and_jpeg_spots_are_no_classes(tmp_path):
    soft = marked(LEFT)
    soft[:32, 15], soft[:32, 16] = 140, 90
    saved(tmp_path / "soft.png", soft)
    assert np.array_equal(read_mask(tmp_path / "soft.png"), marked(LEFT, 1))
    assert np.array_equal(read_mask(soft), marked(LEFT, 1))
    saved(tmp_path / "spots.jpg", np.dstack([marked(LEFT)] * 3), quality=60)
    assert alike(read_mask(tmp_path / "spots.jpg") > 0, marked(LEFT) > 0)


def test_photographs_of_every_kind(tmp_path):
    image = scene((LEFT, RED))
    grey = image[..., 0]
    wanted = np.dstack([grey] * 3)
    assert np.array_equal(read_photograph(saved(tmp_path / "grey.png", grey)), wanted)
    deep = saved(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    assert np.array_equal(read_photograph(deep), wanted)
    clear = np.dstack([image, marked(LEFT)])
    assert np.array_equal(read_photograph(saved(tmp_path / "alpha.png", clear)), image)
