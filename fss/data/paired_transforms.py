"""Joint augmentation of an image and its mask, with the parameters of PFENet, BAM and their successors.

Scale, rotate, blur, flip, crop (reference implementation: https://github.com/dvlab-research/PFENet). Scaling, rotation
and cropping are one interpolation of uint8 values here, instead of two of float values. The share of the foreground in
a crop is read from a table of counts. If the crop is larger than the image, the corners that the rotation moves out of
the image's frame stay visible.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from fss.data.transforms import Frame, resize
from fss.errors import ConfigError
from shards.format import IGNORE_LABEL

MEAN_COLOUR = (124, 116, 104)  # of ImageNet, rounded: becomes about 0 when normalised
BLUR = 5  # pixels, the side of the kernel
DRAWS = 32  # random crops that are tried


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training images; the query and every support of an episode have draws of their own."""

    fit: bool = False
    """First resize every image so that its longer side is the training size, as the evaluation does. The literature
    does not, because it trains at about the size of its photographs; at smaller sizes the scales would differ."""
    scale: tuple[float, float] = (0.9, 1.1)
    """Smallest and largest factor of the scaling; the literature has [0.8, 1.25] for COCO."""
    degrees: float = 10.0
    """Largest angle of the rotation, in both directions."""
    rotate: float = 0.5
    """Probability of a rotation."""
    blur: float = 0.5
    """Probability of a Gaussian blur of 5 x 5 pixels."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    min_foreground: float = 0.85
    """Share of the object (of a label map: of all labelled pixels) that the crop to the training size must show, if one
    of 32 random crops does. In label maps 0 takes any crop; an object is never lost completely."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ConfigError(f"augment.scale is {list(self.scale)}: give two factors above 0, the smaller one first")
        if not 0 <= self.degrees <= 180:
            raise ConfigError(f"augment.degrees is {self.degrees}: give an angle between 0 and 180")
        for name in ("rotate", "blur", "flip", "min_foreground"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} is {getattr(self, name)}: give a share between 0 and 1")


def is_class(mask: np.ndarray) -> np.ndarray:
    """Mark the pixels of a class mask [H, W] that show the class: bool [H, W]."""
    return mask == 1


def augment(
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    rng: np.random.Generator,
    config: AugmentConfig,
    foreground: Callable[[np.ndarray], np.ndarray] = is_class,
) -> tuple[np.ndarray, np.ndarray]:
    """Augment an image uint8 [H, W, 3] and its mask or label map uint8 [H, W]: uint8 [3, S, S] and [S, S].

    Outside the image are the mean colour and 255. A mask with a pixel of the `foreground` (mask -> bool) keeps one: an
    object that a resize would remove is not resized, and if no random crop shows it, a crop around it is taken.
    """
    scale = rng.uniform(*config.scale)
    degrees = rng.uniform(-config.degrees, config.degrees) if rng.random() < config.rotate else 0.0
    blur, flip = rng.random() < config.blur, rng.random() < config.flip
    corners = rng.random((DRAWS, 2))

    if config.fit:
        image, mask = fit(image, mask, size, foreground)
    matrix, varied = warp_mask(mask, size, scale, degrees)
    if foreground(mask).any() and not foreground(varied).any():
        matrix, varied = warp_mask(mask, size, 1.0, 0.0)
    top, left = choose_crop(foreground(varied), size, corners, config.min_foreground)
    cut = varied[top : top + size, left : left + size]  # [S, S]

    matrix[:, 2] -= left, top
    padded = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)  # four channels warp in half the time of three
    crop = cv2.warpAffine(padded, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(*MEAN_COLOUR, 0))
    if blur:
        crop = cv2.GaussianBlur(crop, (BLUR, BLUR), 0)
    if flip:
        crop, cut = cv2.flip(crop, 1), cv2.flip(cut, 1)
    planes = np.empty((4, size, size), np.uint8)
    cv2.split(crop, list(planes))  # several times faster than numpy's transposed copy
    return planes[:3], np.ascontiguousarray(cut)


def fit(
    image: np.ndarray, mask: np.ndarray, size: int, foreground: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Resize image uint8 [H, W, 3] and mask uint8 [H, W] to longer side `size`: [h, w, 3] and [h, w].

    Returns them unchanged if the resize would remove the object.
    """
    height, width = mask.shape
    frame = Frame.fit(height, width, size, "exact")
    small = cv2.resize(mask, (frame.valid_w, frame.valid_h), interpolation=cv2.INTER_NEAREST_EXACT)
    if foreground(mask).any() and not foreground(small).any():
        return image, mask
    planes = resize(image, frame.valid_h, frame.valid_w)  # [3, h, w]
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy()), small


def warp_mask(mask: np.ndarray, size: int, scale: float, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale a mask uint8 [H, W], rotate it about its centre and pad it to at least `size`, evenly on both sides.

    Returns the affine map [2, 3] of (x, y) in pixels, to be applied to the image too, and the mask uint8 [h, w],
    nearest.
    """
    height, width = mask.shape
    extent = np.array([width, height])
    scaled = np.rint(scale * extent).astype(int)
    canvas = np.maximum(scaled, size)
    centre = (width - 1) / 2, (height - 1) / 2  # stays in place
    matrix = cv2.getRotationMatrix2D(centre, degrees, scale)
    matrix[:, 2] += (scale - 1) * extent / 2 + (canvas - scaled) // 2
    return matrix, cv2.warpAffine(mask, matrix, canvas.tolist(), flags=cv2.INTER_NEAREST, borderValue=IGNORE_LABEL)


def choose_crop(foreground: np.ndarray, size: int, corners: np.ndarray, min_foreground: float) -> tuple[int, int]:
    """Return top and left of the first crop of `size` pixels with at least a share of the foreground, bool [h, w].

    corners: [n, 2] in 0..1, the positions of the crops. If none shows enough the last is taken, as in the reference; if
    that shows nothing, the one that shows most; if none shows anything, a crop around a foreground pixel.
    """
    height, width = foreground.shape
    counts = cv2.integral(foreground.view(np.uint8))  # [h + 1, w + 1], foreground above and to the left
    top, left = (corners * (height - size + 1, width - size + 1)).astype(int).T  # [n] each
    bottom, right = top + size, left + size
    visible = counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]  # [n]
    enough = visible >= min_foreground * counts[-1, -1]
    best = enough.argmax() if enough.any() else visible.argmax() if visible[-1] == 0 else len(visible) - 1
    if counts[-1, -1] and not visible[best]:
        y, x = np.unravel_index(foreground.argmax(), foreground.shape)
        return int(np.clip(y - size // 2, 0, height - size)), int(np.clip(x - size // 2, 0, width - size))
    return int(top[best]), int(left[best])
