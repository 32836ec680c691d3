"""Views, patches and regions of one sample, against plain loops."""

import itertools

import numpy as np
import pytest

from fss.data.augment import Augmentation, Box, Fast, draw
from fss.data.batch import ViewSpec
from fss.data.views import GRID, ViewMaker, draw_patch, draw_regions
from shards.codec import encode_labels
from shards.format import ShardError
from tests.support.packed_sets import jpeg, photo, squares

H, W = 97, 130  # odd, so that the label map is rounded up


def members(labels=None) -> dict[str, bytes]:
    return {"jpg": jpeg(photo(1, H, W)), "slic.png": encode_labels(squares(H, W) if labels is None else labels)}


@pytest.mark.parametrize("local", ["none", "patch", "region"])
@pytest.mark.parametrize("backend", ["cv2", "pil"])
def test_rows_have_what_the_spec_asks_for(local, backend):
    spec = ViewSpec(size=64, local=local, patch_size=32, regions=5, stride=16)
    row = ViewMaker(spec, backend, 0)(members(), epoch=2, index=7)
    shapes = {"query": (3, 64, 64), "key": (3, 64, 64)}
    if local == "patch":
        shapes |= {"patch_query": (3, 32, 32), "patch_key": (3, 32, 32)}
    if local == "region":
        shapes |= {"region_query": (5, 4, 4), "region_key": (5, 4, 4), "region_weight": (5,)}
    assert {name: array.shape for name, array in row.items()} == shapes
    assert all(array.dtype == (np.float32 if name.startswith("region") else np.uint8) for name, array in row.items())


def test_views_depend_on_seed_epoch_and_sample_only():
    spec = ViewSpec(size=32)
    where = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]  # seed, epoch, index
    rows = [ViewMaker(spec, "cv2", seed)(members(), epoch, index) for seed, epoch, index in where]
    views = [row[name].tobytes() for row in rows for name in ("query", "key")]
    assert len(set(views)) == 8
    for (seed, epoch, index), row in zip(where, rows, strict=True):
        local = ViewMaker(ViewSpec(size=32, local="patch"), "cv2", seed)(members(), epoch, index)
        np.testing.assert_array_equal(local["query"], row["query"])  # asking for patches leaves the views alone


@pytest.mark.parametrize(
    "change, message",
    [
        ({"slic.png": None}, "has no slic superpixels"),
        ({"slic.png": encode_labels(squares(H, W)[:-1])}, r"slic.png is \(48, 65\) but an image of \(97, 130\) has"),
        ({"slic.png": b"junk"}, "1-channel PNG"),
        ({"jpg": None, "mask.1.png": b""}, "has no image, only slic.png, mask.1.png"),
        ({"jpg": jpeg(photo(1, H, W))[:300]}, "cannot be decoded"),
    ],
)
def test_damaged_samples_say_why(change, message):
    damaged = {k: v for k, v in (members() | change).items() if v is not None}
    with pytest.raises(ShardError, match=message):
        ViewMaker(ViewSpec(local="patch"), "cv2", 0)(damaged, 0, 0)


@pytest.mark.parametrize(
    "labels", [squares(H, W), squares(H, W, 3).astype(np.uint16) + 300, np.zeros((49, 65), np.uint8)]
)
def test_patches_are_squares_around_superpixels(labels):
    ids = np.unique(labels)
    drawn = set()
    for seed in range(300):
        box = draw_patch(np.random.default_rng(seed), labels, (H, W))
        drawn.add(box)
        assert box.height == box.width and 0 <= box.top <= H - box.height and 0 <= box.left <= W - box.width
    wanted = set()
    for i in ids:  # by hand: bounding box at full resolution, longer side, 15 % on every side, moved inside
        rows, columns = (2 * x for x in np.nonzero(labels == i))
        height, width = rows.max() + 2 - rows.min(), columns.max() + 2 - columns.min()
        side = min(round(max(height, width) * 1.3), H)
        top, left = rows.min() + (height - side) // 2, columns.min() + (width - side) // 2
        wanted.add(Box(min(max(top, 0), H - side), min(max(left, 0), W - side), side, side))
    assert drawn <= wanted and len(drawn) > 0.8 * min(len(wanted), 300 / 3)


def test_patch_views_show_the_patch():
    """Every pixel of both patch views comes from the square: outside of it, the image is bright green."""
    image = np.full((H, W, 3), (0, 255, 0), np.uint8)
    labels = np.zeros((49, 65), np.uint8)
    labels[20:30, 30:38] = 1  # a superpixel amid another
    patch = next(p for s in range(50) if (p := draw_patch(np.random.default_rng(s), labels, (H, W))).height < 60)
    assert patch == Box(37, 55, 26, 26)
    image[patch.top : patch.top + 26, patch.left : patch.left + 26] = (255, 0, 0)
    for seed in range(20):
        how = draw(np.random.default_rng(seed), 26, 26, (0.5, 1)).inside(patch)
        view = Fast(image).apply(Augmentation(box=how.box), 32)
        assert (view[0] == 255).all() and (view[1] == 0).all()


def by_hand(labels, view: Augmentation, size: int, stride: int) -> dict[int, np.ndarray]:
    """Pixels of each id in each cell, one pixel at a time."""
    side = -(-size // stride)
    counts = {int(i): np.zeros((side, side)) for i in np.unique(labels)}
    for y, x in itertools.product(range(size), range(size)):
        mirrored = size - 1 - x if view.flip else x
        row = view.box.top + int((y + 0.5) * view.box.height / size)
        column = view.box.left + int((mirrored + 0.5) * view.box.width / size)
        counts[int(labels[row // 2, column // 2])][y // stride, x // stride] += 1
    return counts


def two_views(seed: int) -> tuple[Augmentation, Augmentation]:
    rng = np.random.default_rng(seed)
    return draw(rng, H, W, (0.2, 1)), draw(rng, H, W, (0.2, 1))


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("size, stride", [(64, 4), (62, 4)])  # fine cells: no two regions look the same
def test_regions_against_loops(seed, size, stride):
    labels = squares(H, W, 9 - seed)
    views = two_views(seed)
    spec = ViewSpec(size=size, local="region", regions=6, stride=stride)
    counts = [by_hand(labels, view, size, stride) for view in views]
    least = 256 * size**2 // 224**2
    valid = [i for i in counts[0] if min(c[i].sum() for c in counts) >= least]
    assert len(valid) > 1
    wanted = {
        (counts[0][i] / counts[0][i].sum()).astype(np.float32).tobytes(): (counts[1][i] / counts[1][i].sum()).astype(
            np.float32
        )
        for i in valid
    }
    found = draw_regions(np.random.default_rng(seed), labels, views, spec)
    chosen = [query.tobytes() for query in found["region_query"]]
    for query, key in zip(chosen, found["region_key"], strict=True):
        np.testing.assert_array_equal(key, wanted[query])  # a known region, and the same one in the other view
    assert len(set(chosen)) == min(6, len(wanted))
    weights = [1 / chosen.count(query) for query in chosen]
    np.testing.assert_allclose(found["region_weight"], weights)


def test_regions_are_drawn_uniformly():
    labels, views = squares(96, 128, 12), (Augmentation(box=Box(0, 0, 96, 128)),) * 2
    spec = ViewSpec(size=64, local="region", regions=4, stride=8)
    times: dict[bytes, int] = {}
    for seed in range(600):
        for query in draw_regions(np.random.default_rng(seed), labels, views, spec)["region_query"]:
            times[query.tobytes()] = times.get(query.tobytes(), 0) + 1
    assert len(times) == 24 and all(abs(t - 100) < 45 for t in times.values())


def grid_by_hand(view: Augmentation, span: Box, size: int, stride: int) -> list[np.ndarray]:
    side = size // stride
    counts = np.zeros((GRID * GRID, side, side))
    for y, x in itertools.product(range(size), range(size)):
        mirrored = size - 1 - x if view.flip else x
        row = view.box.top + int((y + 0.5) * view.box.height / size) - span.top
        column = view.box.left + int((mirrored + 0.5) * view.box.width / size) - span.left
        if 0 <= row < span.height and 0 <= column < span.width:
            counts[row * GRID // span.height * GRID + column * GRID // span.width, y // stride, x // stride] += 1
    return counts


@pytest.mark.parametrize(
    "boxes, spans",
    [
        ([Box(0, 0, 60, 80), Box(20, 30, 60, 80)], [Box(20, 30, 40, 50)] * 2),  # overlapping
        ([Box(0, 0, 40, 50), Box(50, 60, 40, 60)], [Box(0, 0, 40, 50), Box(50, 60, 40, 60)]),  # apart
        ([Box(0, 0, 60, 80), Box(58, 78, 36, 40)], [Box(0, 0, 60, 80), Box(58, 78, 36, 40)]),  # a corner in common
    ],
)
def test_a_grid_stands_in_for_regions_too_small(boxes, spans):
    labels = np.arange(49 * 65, dtype=np.uint16).reshape(49, 65)  # every id is one pixel
    views = Augmentation(box=boxes[0]), Augmentation(box=boxes[1], flip=True)
    spec = ViewSpec(size=128, local="region", regions=16, stride=32)
    found = draw_regions(np.random.default_rng(0), labels, views, spec)
    counts = [grid_by_hand(view, span, 128, 32) for view, span in zip(views, spans, strict=True)]
    least = 256 * 128**2 // 224**2
    wanted = {
        (counts[0][i] / counts[0][i].sum()).astype(np.float32).tobytes(): (counts[1][i] / counts[1][i].sum()).astype(
            np.float32
        )
        for i in range(16)
        if min(c[i].sum() for c in counts) >= least
    }
    assert {query.tobytes() for query in found["region_query"]} == set(wanted)
    for query, key in zip(found["region_query"], found["region_key"], strict=True):
        np.testing.assert_array_equal(key, wanted[query.tobytes()])
