"""Joint augmentation of an image and its mask, with the parameters that PFENet, BAM and their descendants train with.

Scale, rotate, blur, flip, crop (published code of PFENet, https://github.com/dvlab-research/PFENet). Scaling, turning
and cropping are one interpolation here, of uint8 values, instead of two of float ones; and how much of the foreground
a crop shows is looked up in a table of counts instead of cutting it out. Where the crop is larger than the image, the
corners that turning moves out of the image's frame stay visible.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from fss.data.transforms import Frame, resize
from fss.errors import ConfigError
from shards.format import IGNORE_LABEL

MEAN_COLOUR = (124, 116, 104)  # of ImageNet, rounded: becomes about 0 when standardised
BLUR = 5  # pixels, the side of the kernel
DRAWS = 32  # crops tried for one that keeps enough


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied; the query and every support of an episode each by themselves."""

    fit: bool = False
    """First resize every image so that its longer side is the training size, as the evaluation does. The literature
    does not, for it trains at about the size of its photographs; at smaller sizes it would see other scales."""
    scale: tuple[float, float] = (0.9, 1.1)
    """Images are then scaled by a factor between these; the literature has [0.8, 1.25] for COCO."""
    degrees: float = 10.0
    """Images are turned by up to this angle, either way."""
    rotate: float = 0.5
    """Chance of being turned at all."""
    blur: float = 0.5
    """Chance of a Gaussian blur of 5 x 5 pixels."""
    flip: float = 0.5
    """Chance of being mirrored."""
    min_foreground: float = 0.85
    """Share of the object (of a label map: of all that is labelled) that the crop to the training size must show, where
    one of 32 random crops does. In label maps 0 takes any crop; an object is never lost altogether."""

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
    """Where a class mask shows the class."""
    return mask == 1


def augment(
    image: np.ndarray,
    mask: np.ndarray,
    size: int,
    rng: np.random.Generator,
    config: AugmentConfig,
    foreground: Callable[[np.ndarray], np.ndarray] = is_class,
) -> tuple[np.ndarray, np.ndarray]:
    """Vary an image uint8 [H, W, 3] and its mask or label map uint8 [H, W]: uint8 [3, S, S] and [S, S].

    Outside the image the mean colour and 255 are seen. A mask with a pixel of the `foreground` (mask -> bool) keeps
    one: an object too small to survive a resize is spared it, and where no random crop shows any of it, one is cut
    around it.
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
    """Image uint8 [h, w, 3] and mask uint8 [h, w] of longer side `size`; as they were where that loses the object."""
    frame = Frame.fit(*mask.shape, size, "exact")
    small = cv2.resize(mask, (frame.valid_w, frame.valid_h), interpolation=cv2.INTER_NEAREST_EXACT)
    if foreground(mask).any() and not foreground(small).any():
        return image, mask
    planes = resize(image, frame.valid_h, frame.valid_w)  # [3, h, w]
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy()), small


def warp_mask(mask: np.ndarray, size: int, scale: float, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale a mask uint8 [H, W], turn it about its centre and pad it to `size` at least, evenly on both sides.

    Gives the affine map [2, 3] of (x, y) in pixels, which the image has to follow, and the mask uint8 [h, w], nearest.
    """
    height, width = mask.shape
    extent = np.array([width, height])
    scaled = np.rint(scale * extent).astype(int)
    canvas = np.maximum(scaled, size)
    matrix = cv2.getRotationMatrix2D((extent - 1) / 2, degrees, scale)  # about the centre, which stays in place
    matrix[:, 2] += (scale - 1) * extent / 2 + (canvas - scaled) // 2
    return matrix, cv2.warpAffine(mask, matrix, canvas.tolist(), flags=cv2.INTER_NEAREST, borderValue=IGNORE_LABEL)


def choose_crop(foreground: np.ndarray, size: int, corners: np.ndarray, keep: float) -> tuple[int, int]:
    """Top and left of the first crop of `size` pixels that shows a share `keep` of the foreground, bool [h, w].

    corners: [n, 2] in 0..1, where the crops begin. Where none shows enough the last is taken, as in the reference; if
    that shows nothing, the one that shows most; if none shows anything, a crop around a foreground pixel.
    """
    height, width = foreground.shape
    counts = cv2.integral(foreground.view(np.uint8))  # [h + 1, w + 1], foreground above and to the left
    top, left = (corners * (height - size + 1, width - size + 1)).astype(int).T  # [n] each
    bottom, right = top + size, left + size
    shown = counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]  # [n]
    enough = shown >= keep * counts[-1, -1]
    best = enough.argmax() if enough.any() else shown.argmax() if shown[-1] == 0 else len(shown) - 1
    if counts[-1, -1] and not shown[best]:
        y, x = np.unravel_index(foreground.argmax(), foreground.shape)
        return int(np.clip(y - size // 2, 0, height - size)), int(np.clip(x - size // 2, 0, width - size))
    return int(top[best]), int(left[best])
