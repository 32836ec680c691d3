"""Superpixel label maps, computed once when a set is packed; `python -m shards.superpixels` draws them.

QGNet takes its local patches from SLIC or from Felzenszwalb's graph segmentation (paper, section IV-A and Table V)
without giving parameters. With the ones below SLIC's segments are the larger, as in the paper: on COCO photographs
about 66 against 627 a photograph.

scikit-image 0.26's SLIC starts from the regular grid and does not move the seeds to the lowest gradient nearby, as
the paper's Eq. 5 does.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from skimage import segmentation

from shards.codec import decode_image
from shards.format import SUPERPIXEL_STRIDE, ShardError
from shards.sources import read_file

PARAMETERS: dict[str, dict] = {
    "slic": {"n_segments": 100, "compactness": 10.0, "max_num_iter": 10},
    "felzenszwalb": {"scale": 100, "sigma": 0.5, "min_size": 50},
}
MIN_SEGMENTS = 8
MAX_SEGMENTS = 1 << 16  # label maps have 16 bits
GRID = 8  # cells a side of the map that replaces one with fewer segments


def slic(image: np.ndarray) -> np.ndarray:
    """Compute SLIC segments of an RGB uint8 image [H, W, 3] at full resolution: int [H, W]."""
    return segmentation.slic(image, start_label=0, **PARAMETERS["slic"])


def felzenszwalb(image: np.ndarray) -> np.ndarray:
    """Compute Felzenszwalb's segments of an RGB uint8 image [H, W, 3] at full resolution: int [H, W]."""
    return segmentation.felzenszwalb(image, **PARAMETERS["felzenszwalb"])


ALGORITHMS = {"slic": slic, "felzenszwalb": felzenszwalb}


def parameters(algorithm: str) -> dict:
    """Return all that decides a label map, for the manifest."""
    return {**PARAMETERS[algorithm], "stride": SUPERPIXEL_STRIDE, "library": f"scikit-image {version('scikit-image')}"}


def label_map(image: np.ndarray, algorithm: str) -> tuple[np.ndarray, bool]:
    """Compute the label map for a shard, uint16 [ceil(H/2), ceil(W/2)], ids contiguous from 0, and a flag.

    image: RGB uint8 [H, W, 3]. A map may collapse to a few segments or one: Felzenszwalb's if the image is flat, SLIC's
    if the texture is finer than its segments. If fewer than 8 are left, a regular grid of 8 x 8 cells replaces them and
    the flag is true.

    Raises ShardError if there are more segments than 16 bits can number.
    """
    full = ALGORITHMS[algorithm](image)  # [H, W]
    half = full[::SUPERPIXEL_STRIDE, ::SUPERPIXEL_STRIDE]
    ids, labels = np.unique(half, return_inverse=True)
    if len(ids) > MAX_SEGMENTS:
        raise ShardError(
            f"{algorithm} gives {len(ids)} superpixels and {MAX_SEGMENTS} is the most that is stored: make the image "
            "smaller, or pack without this algorithm"
        )
    fallback = len(ids) < MIN_SEGMENTS
    if fallback:
        labels = _grid(half.shape)
    return labels.reshape(half.shape).astype(np.uint16), fallback


def _grid(shape: tuple[int, int]) -> np.ndarray:
    rows, columns = (np.arange(side) * min(GRID, side) // side for side in shape)  # [h], [w]
    return rows[:, None] * (columns[-1] + 1) + columns[None, :]


def picture(images: Sequence[np.ndarray], width: int = 320) -> np.ndarray:
    """Draw a picture like the paper's Fig. 4: one row an image, the image | Felzenszwalb | SLIC, with boundaries.

    images: RGB uint8 [H, W, 3] each. The segments are those of :func:`label_map`, fallback included. Returns RGB uint8
    [rows, 3 * width, 3], each panel `width` pixels wide.
    """
    rows = []
    for image in images:
        height = round(image.shape[0] * width / image.shape[1])
        panels = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)]
        for algorithm in ("felzenszwalb", "slic"):
            labels, _ = label_map(image, algorithm)
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
            drawn = segmentation.mark_boundaries(panels[0], labels, color=(1, 1, 0), mode="inner")
            panels.append((drawn * 255).astype(np.uint8))
        rows.append(np.concatenate(panels, axis=1))
    return np.concatenate(rows)


def main(argv: Sequence[str]) -> int:
    """``python -m shards.superpixels OUT.png IMAGE...``: draw the superpixels of some images."""
    if len(argv) < 2 or not argv[0].endswith(".png"):
        print("usage: python -m shards.superpixels OUT.png IMAGE...", file=sys.stderr)
        return 2
    try:
        drawn = picture([decode_image(read_file(Path(name))) for name in argv[1:]])
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not cv2.imwrite(argv[0], drawn[..., ::-1]):
        print(f"error: {argv[0]} cannot be written", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
