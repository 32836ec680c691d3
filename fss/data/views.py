"""Arrays for contrastive methods from the bytes of one sample: views, patches of them, regions in them.

Every random choice depends on (seed, epoch, sample, purpose) alone, and not on the process that makes the view.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from fss.data.augment import BACKENDS, Augmentation, Backend, Box, DecodedImage, draw
from fss.data.batch import ViewSpec
from shards.codec import decode_labels, image_bytes
from shards.format import SUPERPIXEL_STRIDE, ShardError

VIEW_SCALE = (0.2, 1.0)  # share of the image's area in a view: MoCo v2
PATCH_SCALE = (0.5, 1.0)  # share of the patch's area in its view: our choice, a patch is small already
PATCH_MARGIN = 0.15  # of the superpixel's longer side, added on every side: our choice
REGION_PIXELS = 256  # a region must fill as many in both views, when these are 224 pixels wide
GRID = 4  # cells a side of the grid that is used if no superpixel is visible in both views

# Purposes of random streams; none shares a stream with another or with the order of the samples.
QUERY, KEY, PATCH_QUERY, PATCH_KEY, CHOICE = 11, 12, 13, 14, 15


@dataclass(frozen=True, kw_only=True)
class DrawnViews:
    """A decoded image and everything that was drawn for it."""

    image: DecodedImage
    augmentations: dict[str, Augmentation]
    """Field of `ViewBatch` -> the draw of that view: query and key, with patches also patch_query and patch_key."""
    regions: dict[str, np.ndarray]
    """Arrays of `draw_regions`; empty without regions."""


@dataclass(frozen=True)
class ViewMaker:
    """Function from a sample to one row of a `ViewBatch`, determined by its members, seed, epoch and index."""

    spec: ViewSpec
    backend: Backend
    seed: int

    def __call__(self, members: dict[str, bytes], epoch: int, index: int) -> dict[str, np.ndarray]:
        """Return arrays by the names of `ViewBatch`'s fields, without the batch dimension.

        Raises ShardError if an image or a label map is missing, damaged or of the wrong size.
        """
        drawn = self.draw(members, epoch, index)
        sides = {"patch_query": self.spec.patch_size, "patch_key": self.spec.patch_size}
        views = {
            name: drawn.image.apply(augmentation, sides.get(name, self.spec.size))  # [3, S, S]
            for name, augmentation in drawn.augmentations.items()
        }
        return views | drawn.regions

    def draw(self, members: dict[str, bytes], epoch: int, index: int) -> DrawnViews:
        """Decode the image and draw its views, without making them. Raises ShardError as a call does."""
        spec = self.spec
        image = BACKENDS[self.backend].decode(image_bytes(members))
        size = image.size

        def stream(purpose: int) -> np.random.Generator:
            return np.random.default_rng([purpose, self.seed, epoch, index])

        views = {
            "query": draw(stream(QUERY), *size, VIEW_SCALE),
            "key": draw(stream(KEY), *size, VIEW_SCALE),
        }
        regions: dict[str, np.ndarray] = {}
        if spec.local != "none":
            labels = superpixels(members, spec.superpixels, size)
            if spec.local == "patch":
                patch = draw_patch(stream(CHOICE), labels, size)
                for name, purpose in (("patch_query", PATCH_QUERY), ("patch_key", PATCH_KEY)):
                    views[name] = draw(stream(purpose), patch.height, patch.width, PATCH_SCALE).inside(patch)
            else:
                regions = draw_regions(stream(CHOICE), labels, (views["query"], views["key"]), spec)
        return DrawnViews(image=image, augmentations=views, regions=regions)


def superpixels(members: dict[str, bytes], algorithm: str, size: tuple[int, int]) -> np.ndarray:
    """Return the stored label map, uint8 or uint16 [H / 2, W / 2], of an image of `size` (H, W).

    Raises ShardError if it is missing, damaged or of another size.
    """
    if f"{algorithm}.png" not in members:
        raise ShardError(f"has no {algorithm} superpixels")
    labels = decode_labels(members[f"{algorithm}.png"])
    expected = tuple(-(-side // SUPERPIXEL_STRIDE) for side in size)
    if labels.shape != expected:
        raise ShardError(f"{algorithm}.png is {labels.shape} but an image of {size} has {expected}")
    return labels


def draw_patch(rng: np.random.Generator, labels: np.ndarray, size: tuple[int, int]) -> Box:
    """Draw the square of an image of `size` (H, W) around one superpixel of its map [H / 2, W / 2], all equally likely.

    QGNet's local patch, read literally (section III-B; Fig. 3). The side of the square is the longer side of the
    superpixel's bounding box plus a margin. It is moved inside the image, and is smaller only if the image is.
    """
    present = np.flatnonzero(np.bincount(labels.ravel()))
    chosen = labels == present[rng.integers(len(present))]  # [H / 2, W / 2]
    left, top, width, height = (SUPERPIXEL_STRIDE * x for x in cv2.boundingRect(chosen.view(np.uint8)))
    side = min(round(max(width, height) * (1 + 2 * PATCH_MARGIN)), *size)
    top, left = top + (height - side) // 2, left + (width - side) // 2
    return Box(min(max(top, 0), size[0] - side), min(max(left, 0), size[1] - side), side, side)


def draw_regions(
    rng: np.random.Generator, labels: np.ndarray, views: tuple[Augmentation, Augmentation], spec: ViewSpec
) -> dict[str, np.ndarray]:
    """Draw R superpixels that both views show, as area weights over the cells of the feature map.

    QGNet's local patch, read as the same superpixel in both views. Features are pooled by area as in DetCon (Hénaff et
    al. 2021), but with soft weights. Regions are drawn uniformly without replacement. If fewer than R are large enough,
    all are taken and the rest is drawn among them again. If none is, the cells of a grid replace them (`grids`).

    labels: superpixel map [H / 2, W / 2].
    Returns `region_query` and `region_key` [R, h, w] float32, each region with sum 1, and `region_weight` [R] float32.
    """
    min_pixels = max(1, REGION_PIXELS * spec.size**2 // 224**2)
    counts = [
        count_cells(visible_labels(labels, view, spec.size), int(labels.max()) + 1, spec.stride) for view in views
    ]
    areas = [c.sum((1, 2)) for c in counts]  # [ids]
    valid = np.flatnonzero(np.minimum(*areas) >= min_pixels)
    if not len(valid):
        counts = [count_cells(grid, GRID * GRID, spec.stride) for grid in grids(views, spec.size, min_pixels)]
        areas = [c.sum((1, 2)) for c in counts]  # [16]
        valid = np.flatnonzero(np.minimum(*areas) >= min_pixels)
    if len(valid) >= spec.regions:
        chosen = rng.choice(valid, spec.regions, replace=False)
    else:
        chosen = np.concatenate([rng.permutation(valid), rng.choice(valid, spec.regions - len(valid))])
    query, key = ((c[chosen] / a[chosen, None, None]).astype(np.float32) for c, a in zip(counts, areas, strict=True))
    weight = 1 / np.bincount(chosen)[chosen]
    return {"region_query": query, "region_key": key, "region_weight": weight.astype(np.float32)}


def visible_labels(labels: np.ndarray, view: Augmentation, size: int) -> np.ndarray:
    """Crop and flip a label map [H / 2, W / 2] as a view does: [size, size], nearest neighbour."""
    rows, columns = sources(view, size)
    return labels[np.ix_(rows // SUPERPIXEL_STRIDE, columns // SUPERPIXEL_STRIDE)]


def sources(view: Augmentation, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image's row and column at the centre of each row and column of a view, [size] each."""
    centres = np.arange(size) + 0.5
    rows = view.box.top + (centres * view.box.height / size).astype(np.int64)
    columns = view.box.left + (centres * view.box.width / size).astype(np.int64)
    return rows, columns[::-1] if view.flip else columns


def count_cells(labels: np.ndarray, ids: int, stride: int) -> np.ndarray:
    """Count the pixels of each id in each cell of `stride` pixels: [S, S] -> [ids, h, w]. The id -1 is not counted."""
    side = -(-len(labels) // stride)  # as many cells as a network of that stride makes of S pixels
    cell = np.arange(len(labels)) // stride
    place = (labels.astype(np.int64) + 1) * side * side + cell[:, None] * side + cell  # [S, S]
    return np.bincount(place.ravel(), minlength=(ids + 1) * side * side).reshape(ids + 1, side, side)[1:]


def grids(views: tuple[Augmentation, Augmentation], size: int, least: int) -> list[np.ndarray]:
    """Return for both views the cell of a 4 x 4 grid that each pixel lies in: [size, size], -1 outside the grid.

    The grid spans the intersection of the views, so that a cell is the same part of the image in both. If no cell of it
    fills `least` pixels of both views, each view has a grid of its own.
    """
    a, b = (view.box for view in views)
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom, right = min(a.top + a.height, b.top + b.height), min(a.left + a.width, b.left + b.width)
    if top < bottom and left < right:
        shared = [grid(view, Box(top, left, bottom - top, right - left), size) for view in views]
        areas = [np.bincount(cells[cells >= 0], minlength=GRID * GRID) for cells in shared]
        if np.minimum(*areas).max() >= least:
            return shared
    return [grid(view, view.box, size) for view in views]


def grid(view: Augmentation, span: Box, size: int) -> np.ndarray:
    """Return the cell of a 4 x 4 grid over `span` that each pixel of a view lies in: [size, size], -1 outside."""
    rows, columns = sources(view, size)
    row, column = (rows - span.top) * GRID // span.height, (columns - span.left) * GRID // span.width
    inside = ((row >= 0) & (row < GRID))[:, None] & ((column >= 0) & (column < GRID))
    return np.where(inside, row[:, None] * GRID + column, -1)
