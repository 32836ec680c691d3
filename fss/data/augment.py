"""The augmentation of MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297; parameters of its published code).

The random numbers are drawn once, into an `Augmentation`, and then carried out by one of two backends: 'pil' is what
the published code ran (torchvision's operations on PIL images), 'cv2' does the same several times faster and differs
from it by rounding: about one grey level where it blurs or turns the hue, less elsewhere.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import interpolate

from shards.codec import decode_image
from shards.format import ShardError

Backend = Literal["cv2", "pil"]

ASPECT = (3 / 4, 4 / 3)  # width / height of a crop
JITTER_CHANCE, STRENGTH, HUE_STRENGTH = 0.8, 0.4, 0.1  # of brightness, contrast and saturation alike
GRAY_CHANCE = 0.2
BLUR_CHANCE, BLUR_SIGMA = 0.5, (0.1, 2.0)  # pixels of the output
FLIP_CHANCE = 0.5
CROP_ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One draw of every random choice, in the order in which they are carried out."""

    box: Box
    """Cut out and resized to the view."""
    jitter: tuple[tuple[str, float], ...] = ()
    """(operation, strength) in their drawn order; hue is a shift in turns, the others are factors."""
    gray: bool = False
    blur: float = 0.0
    """Standard deviation in pixels of the view; 0 leaves it sharp."""
    flip: bool = False

    def inside(self, frame: Box) -> "Augmentation":
        """The same augmentation of the image that `frame` was cut from."""
        return replace(self, box=self.box._replace(top=self.box.top + frame.top, left=self.box.left + frame.left))


def draw(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]) -> Augmentation:
    """Draw MoCo v2's augmentation of an image of that size, its crop covering a share of `scale` of the area."""
    box = draw_box(rng, height, width, scale)
    jitter = ()
    if rng.random() < JITTER_CHANCE:
        low, high = 1 - STRENGTH, 1 + STRENGTH
        strengths = (
            ("brightness", rng.uniform(low, high)),
            ("contrast", rng.uniform(low, high)),
            ("saturation", rng.uniform(low, high)),
            ("hue", rng.uniform(-HUE_STRENGTH, HUE_STRENGTH)),
        )
        jitter = tuple(strengths[i] for i in rng.permutation(len(strengths)))
    gray = rng.random() < GRAY_CHANCE
    blur = rng.uniform(*BLUR_SIGMA) if rng.random() < BLUR_CHANCE else 0.0
    return Augmentation(box=box, jitter=jitter, gray=gray, blur=blur, flip=rng.random() < FLIP_CHANCE)


def draw_box(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]) -> Box:
    """A crop of random area and aspect; as in torchvision, the largest central one if ten draws do not fit."""
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


class Fast:
    """OpenCV on uint8 arrays, and torch's resize, which is PIL's in a vectorised form (4 times INTER_AREA's speed)."""

    decode = staticmethod(decode_image)

    @staticmethod
    def size(image: np.ndarray) -> tuple[int, int]:
        return image.shape[:2]

    @staticmethod
    def apply(image: np.ndarray, how: Augmentation, size: int) -> np.ndarray:
        """Uint8 RGB [H, W, 3] -> [3, size, size]."""
        view = crop_resize(image, how.box, size)  # [size, size, 3]
        for operation, strength in how.jitter:
            view = JITTER[operation](view, strength)
        if how.gray:
            view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if how.blur:
            kernel = cv2.getGaussianKernel(2 * math.ceil(3 * how.blur) + 1, how.blur, cv2.CV_32F)
            view = cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        if how.flip:
            view = cv2.flip(view, 1)
        planes = np.empty((3, size, size), np.uint8)
        cv2.split(view, list(planes))  # several times faster than numpy's transposed copy
        return planes


class Strict:
    """The published code's own operations: PIL images and torchvision's functions on them."""

    @staticmethod
    def decode(data: bytes) -> Image.Image:
        """As `shards.codec.decode_image`, by PIL."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ShardError(f"image cannot be decoded ({type(error).__name__})") from None

    @staticmethod
    def size(image: Image.Image) -> tuple[int, int]:
        return image.height, image.width

    @staticmethod
    def apply(image: Image.Image, how: Augmentation, size: int) -> np.ndarray:
        """RGB image -> uint8 [3, size, size]."""
        from torchvision.transforms import InterpolationMode  # here: it takes two seconds of every data worker
        from torchvision.transforms import functional as reference

        view = reference.resized_crop(image, *how.box, [size, size], InterpolationMode.BILINEAR)
        for operation, strength in how.jitter:
            view = getattr(reference, f"adjust_{operation}")(view, strength)
        if how.gray:
            view = reference.rgb_to_grayscale(view, num_output_channels=3)
        if how.blur:
            view = view.filter(ImageFilter.GaussianBlur(how.blur))
        if how.flip:
            view = reference.hflip(view)
        return np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]


BACKENDS: dict[Backend, type[Fast] | type[Strict]] = {"cv2": Fast, "pil": Strict}


def crop_resize(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cut `box` out of an image [H, W, 3] and resize it to [size, size, 3], bilinear, antialiased when it shrinks."""
    top, left, height, width = box
    crop = torch.from_numpy(image[top : top + height, left : left + width][None]).permute(0, 3, 1, 2)  # [1, 3, h, w]
    planes = interpolate(crop, (size, size), mode="bilinear", antialias=True)[0].numpy()  # [3, size, size]
    return cv2.merge(list(planes))


def affine(view: np.ndarray, factor: float, other: np.ndarray, weight: float, offset: float) -> np.ndarray:
    """factor * view + weight * other + offset, cut off to 0..255 and rounded down as PIL does."""
    return cv2.addWeighted(view, factor, other, weight, offset - 0.5)  # OpenCV rounds to nearest


def brightness(view: np.ndarray, factor: float) -> np.ndarray:
    return affine(view, factor, view, 0, 0)


def contrast(view: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean grey of the view."""
    red, green, blue, _ = cv2.mean(view)
    mean = int(0.299 * red + 0.587 * green + 0.114 * blue + 0.5)
    return affine(view, factor, view, 0, (1 - factor) * mean)


def saturation(view: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey view."""
    gray = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return affine(view, factor, gray, 1 - factor, 0)


def hue(view: np.ndarray, shift: float) -> np.ndarray:
    """Turn the hue by `shift` of a full circle."""
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)  # hue in 0..255
    turned = cv2.extractChannel(hsv, 0)
    turned += np.uint8(int(shift * 255) % 256)  # wraps around, as hue does
    cv2.insertChannel(turned, hsv, 0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


JITTER: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}
