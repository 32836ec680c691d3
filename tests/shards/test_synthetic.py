import cv2
import numpy as np
import pytest
from skimage.feature import hog

from shards.codec import decode_image
from shards.format import ShardError
from shards.synthetic import CLASSES, KINDS, draw, embed, synthetic


@pytest.fixture(scope="module")
def crops() -> tuple[list[np.ndarray], np.ndarray]:
    """Objects of 500 images, cut out by their boxes: RGB crops with everything else black, and class ids."""
    found, ids = [], []
    for index in range(500):
        image, labels = draw(7, index)
        for class_id in np.unique(labels[labels > 0]):
            mask = labels == class_id
            (top, bottom), (left, right) = ((side.min(), side.max() + 1) for side in np.nonzero(mask))
            found.append(image[top:bottom, left:right] * mask[top:bottom, left:right, None])
            ids.append(class_id)
    return found, np.array(ids)


def nearest_class(features: np.ndarray, ids: np.ndarray) -> float:
    """Share of the second half of the objects whose nearest class mean, over the first half, is their own."""
    half = len(ids) // 2
    classes = np.unique(ids[:half])
    means = np.stack([features[:half][ids[:half] == class_id].mean(axis=0) for class_id in classes])  # [C, F]
    distances = np.linalg.norm(features[half:, None] - means[None], axis=2)  # [N/2, C]
    return float((classes[distances.argmin(axis=1)] == ids[half:]).mean())


def test_colour_does_not_tell_the_class_and_gradients_do(crops):
    images, ids = crops
    colour = np.stack([image[image.any(axis=2)].mean(axis=0) for image in images])
    gradients = np.stack(
        [
            hog(cv2.cvtColor(cv2.resize(image, (48, 48)), cv2.COLOR_RGB2GRAY), pixels_per_cell=(12, 12))
            for image in images
        ]
    )
    guessing = 1 / len(CLASSES)
    assert nearest_class(colour, ids) < 2 * guessing
    assert nearest_class(gradients, ids) > 5 * guessing


def test_an_image_is_a_function_of_seed_and_index():
    first, again, other = draw(3, 5), draw(3, 5), draw(4, 5)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_images_hold_several_objects_of_different_classes(crops):
    counts = [len(np.unique(draw(0, index)[1])) - 1 for index in range(60)]
    assert set(counts) == {2, 3, 4}
    _, ids = crops
    times = np.bincount(ids, minlength=len(CLASSES) + 1)[1:]
    assert len(times) == 24 and times.min() > 0.5 * times.mean()


@pytest.mark.parametrize("folds", [lambda index: index // 6, lambda index: index % 4])
def test_every_fold_mixes_shapes_and_textures(folds):
    assert len(set(KINDS)) == 24
    for fold in range(4):
        kinds = [kind for index, kind in enumerate(KINDS) if folds(index) == fold]
        assert len({shape for shape, _ in kinds}) >= 3 and len({texture for _, texture in kinds}) == 4


def test_sample_agrees_with_its_drawing():
    item = synthetic(3, seed=2).items[1]
    sample = item.read()
    image, labels = draw(2, 1)
    assert {class_id: mask.sum() for class_id, mask in sample.masks.items()} == {
        class_id: (labels == class_id).sum() for class_id in np.unique(labels[labels > 0])
    }
    assert np.abs(decode_image(sample.image).astype(int) - image).mean() < 10


def test_embed_packs_once(tmp_path):
    manifest = embed(tmp_path / "set", images=3, seed=1)
    stamp = (tmp_path / "set" / manifest.shards[0].name).stat().st_mtime_ns
    assert embed(tmp_path / "set", images=3, seed=1) == manifest
    assert (tmp_path / "set" / manifest.shards[0].name).stat().st_mtime_ns == stamp
    assert manifest.classes == CLASSES and manifest.superpixels.keys() == {"slic", "felzenszwalb"}
    with pytest.raises(ShardError, match="other arguments"):
        embed(tmp_path / "set", images=4, seed=1)


def test_senseless_counts_are_refused():
    with pytest.raises(ShardError, match="must be 1 or more"):
        synthetic(0)
