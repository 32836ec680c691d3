"""A procedural few-shot segmentation set: the embedded default, which needs no download.

24 classes, each a shape with a texture: 6 shapes x 4 textures. Every shape and every texture belongs to several
classes and every object has random colours, so that neither colour nor shape nor texture alone identifies a class.
Backgrounds are cluttered, with decoys: the classes' shapes in plain colours, and textured blobs of no class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from shards.format import Manifest, ShardError
from shards.sources import Sample, Source
from shards.write import pack

# A shape is true inside, as a function of u to the right and v downwards; the object fills about [-1, 1].
SHAPES: dict[str, Callable] = {
    "disc": lambda u, v: u * u + v * v < 0.9,
    "triangle": lambda u, v: (v < 0.75) & (v > 1.9 * np.abs(u) - 0.95),
    "cross": lambda u, v: np.minimum(np.abs(u), np.abs(v)) < 0.32,
    "star": lambda u, v: np.hypot(u, v) < 0.68 + 0.32 * np.cos(5 * np.arctan2(u, -v)),
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.7) < 0.29,
    "crescent": lambda u, v: (u * u + v * v < 1) & (np.hypot(u - 0.55, v) > 0.72),
}
# A texture is the share of the second colour, as a function of the same coordinates times a frequency.
TEXTURES: dict[str, Callable] = {
    "striped": lambda x, y: np.sin(x) > 0,
    "checkered": lambda x, y: np.sin(x) * np.sin(y) > 0,
    "dotted": lambda x, y: np.cos(x) + np.cos(y) > 0.75,
    "wavy": lambda x, y: np.sin(y + 1.6 * np.sin(0.8 * x)) > 0,
}
FREQUENCIES = {"striped": 11.0, "checkered": 9.0, "dotted": 12.0, "wavy": 14.0}
# Class 6 f + s + 1 has shape s and texture (f + s) % 4: folds of consecutive or of interleaved ids mix both.
KINDS = [
    (shape, list(TEXTURES)[(block + number) % len(TEXTURES)])
    for block in range(4)
    for number, shape in enumerate(SHAPES)
]
CLASSES = {class_id: f"{texture} {shape}" for class_id, (shape, texture) in enumerate(KINDS, start=1)}

HEIGHTS, WIDTHS = (128, 160), (160, 192)
RADII = (20, 40)  # pixels
MIN_VISIBLE = 0.4  # share of the visible part of an object that a later one must leave
JPEG_QUALITY = 90


@dataclass(frozen=True)
class SyntheticItem:
    """`Item`: one image, a pure function of (seed, index)."""

    key: str
    source: str
    seed: int
    index: int

    def read(self) -> Sample:
        image, labels = draw(self.seed, self.index)
        masks = {int(class_id): labels == class_id for class_id in np.unique(labels[labels > 0])}
        jpeg = cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1].tobytes()
        return Sample(image=jpeg, masks=masks, paint=sorted(masks))


def synthetic(images: int = 400, seed: int = 0) -> Source:
    """Return the procedural set as a source of `images` images. Masks have the visible pixels, so they do not overlap.

    Raises ShardError if `images` is below 1 or the seed below 0.
    """
    if images < 1 or seed < 0:
        raise ShardError(f"images ({images}) must be 1 or more and the seed ({seed}) 0 or more")
    return Source(
        name="synthetic",
        classes=CLASSES,
        items=[
            SyntheticItem(f"synthetic_{index:06d}", f"seed {seed}, index {index}", seed, index)
            for index in range(images)
        ],
        arguments={"seed": seed},
    )


def embed(folder: Path, *, images: int = 400, seed: int = 0, processes: int = 1) -> Manifest:
    """Pack the procedural set with both kinds of superpixels into `folder`; a finished set is returned at once.

    Raises ShardError if the folder has another set or cannot be written.
    """
    return pack(
        synthetic(images, seed),
        Path(folder),
        superpixels=("slic", "felzenszwalb"),
        processes=processes,
        samples_per_shard=50,
    )


def draw(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw image `index`: RGB uint8 [H, W, 3] and its label map uint8 [H, W].

    It has 2 to 4 objects of different classes, rarely fewer, if there is no place for one.
    """
    rng = np.random.default_rng((seed, index))
    size = rng.integers(*HEIGHTS, endpoint=True), rng.integers(*WIDTHS, endpoint=True)
    canvas = _background(rng, size)  # [H, W, 3] float32, 0..1
    labels = np.zeros(size, np.uint8)  # [H, W]
    for class_id in rng.permutation(len(CLASSES))[: rng.integers(2, 4, endpoint=True)] + 1:
        _place(rng, canvas, labels, int(class_id))
    cv2.GaussianBlur(canvas, (3, 3), rng.uniform(0.3, 0.8), dst=canvas)
    canvas *= 1 + 0.25 * _noise(rng, size, 2)[..., None]  # uneven light
    canvas += rng.normal(0, rng.uniform(0.01, 0.04), canvas.shape).astype(np.float32)
    return (canvas.clip(0, 1) * 255).astype(np.uint8), labels


def _place(rng: np.random.Generator, canvas: np.ndarray, labels: np.ndarray, class_id: int) -> None:
    """Paint an object at a place where it leaves enough of the others visible, if a few attempts find one."""
    before = np.bincount(labels.ravel(), minlength=256)
    for _ in range(8):
        shape, texture = KINDS[class_id - 1]
        rows, columns, inside, u, v = _shape(rng, labels.shape, SHAPES[shape], rng.uniform(*RADII))
        covered = np.bincount(labels[rows, columns][inside], minlength=256)
        if (covered[1:] <= (1 - MIN_VISIBLE) * before[1:]).all():
            frequency = FREQUENCIES[texture] * rng.uniform(0.85, 1.2)
            second = TEXTURES[texture](u * frequency + rng.uniform(0, 6), v * frequency + rng.uniform(0, 6))
            paint = _two_colours(rng)[second.astype(int)]  # [h, w, 3]
            canvas[rows, columns][inside] = paint[inside]
            labels[rows, columns][inside] = class_id
            return


def _shape(rng: np.random.Generator, size: tuple, shape: Callable, radius: float) -> tuple:
    """Return a window of the image (rows, columns), the pixels in it of a deformed shape, and their (u, v)."""
    reach = int(radius * 1.5)
    top, left = (rng.integers(int(radius * 0.7), int(side - radius * 0.7)) for side in size)
    rows = slice(max(0, top - reach), min(size[0], top + reach))
    columns = slice(max(0, left - reach), min(size[1], left + reach))
    y, x = np.mgrid[rows, columns].astype(np.float32)
    angle, aspect = rng.uniform(-0.6, 0.6), rng.uniform(0.8, 1.25)
    x, y = (x - left) / radius, (y - top) / radius
    u = (np.cos(angle) * x + np.sin(angle) * y) * aspect
    v = (np.cos(angle) * y - np.sin(angle) * x) / aspect
    bend = rng.uniform(-0.12, 0.12, 2)
    inside = shape(u + bend[0] * np.sin(3 * v), v + bend[1] * np.sin(3 * u)) & (np.hypot(u, v) < 1.15)
    return rows, columns, inside, u, v


def _background(rng: np.random.Generator, size: tuple) -> np.ndarray:
    """Cloudy two-colour ground, strewn with rubble and decoys: [H, W, 3] float32."""
    share = 0.5 + 0.5 * _noise(rng, size, 4)[..., None]  # [H, W, 1]
    ground = _two_colours(rng)
    canvas = share * ground[0] + (1 - share) * ground[1]
    for _ in range(rng.integers(10, 25)):
        centre, colour = rng.uniform(0, size[::-1]), rng.uniform(0, 1, 3)
        corners = centre + rng.normal(0, rng.uniform(3, 14), (rng.integers(2, 6), 2))
        if rng.random() < 0.5:
            cv2.fillPoly(canvas, [corners.astype(np.int32)], colour.tolist())
        else:
            cv2.polylines(canvas, [corners.astype(np.int32)], False, colour.tolist(), int(rng.integers(1, 4)))
    for _ in range(rng.integers(1, 4)):  # right shape, no texture
        shape = list(SHAPES.values())[rng.integers(len(SHAPES))]
        rows, columns, inside, _, _ = _shape(rng, size, shape, rng.uniform(12, 30))
        canvas[rows, columns][inside] = rng.uniform(0, 1, 3)
    for _ in range(rng.integers(1, 3)):  # right texture, no shape
        texture = list(TEXTURES)[rng.integers(len(TEXTURES))]
        blob = _noise(rng, size, 3) > 0.6
        y, x = np.mgrid[: size[0], : size[1]] * (FREQUENCIES[texture] / rng.uniform(*RADII))
        canvas[blob] = _two_colours(rng)[TEXTURES[texture](x, y).astype(int)][blob]
    return canvas


def _two_colours(rng: np.random.Generator) -> np.ndarray:
    """Draw two colours [2, 3] with enough contrast in brightness to show a texture."""
    while True:
        colours = rng.uniform(0, 1, (2, 3)).astype(np.float32)
        if abs(colours[0].mean() - colours[1].mean()) > 0.25:
            return colours


def _noise(rng: np.random.Generator, size: tuple, octaves: int) -> np.ndarray:
    """Draw smooth noise in about [-1, 1]: float32 [H, W], a sum of octaves that halve in strength."""
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        coarse = rng.uniform(-1, 1, (3 * 2**octave, 4 * 2**octave)).astype(np.float32)
        total += cv2.resize(coarse, (int(size[1]), int(size[0])), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total / 1.5
