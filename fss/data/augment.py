"""The augmentation of MoCo v2 (Chen et al. 2020, https://arxiv.org/abs/2003.04297; parameters of its reference code).

The random numbers are drawn once, into an `Augmentation`, which one of three backends then applies. 'pil' runs the
operations of the reference implementation: torchvision's, on PIL images. 'cv2' is several times faster and differs from
it by rounding: by about one grey level after a blur or a shift of the hue, by less otherwise. 'device' does what 'cv2'
does, for a whole batch on the device (`fss.data.deferred_views`); a single image it decodes and augments as 'cv2'.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, Self

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.nn.functional import interpolate

from shards.codec import decode_image
from shards.format import ShardError

Backend = Literal["cv2", "pil", "device"]

ASPECT = (3 / 4, 4 / 3)  # width / height of a crop
JITTER_PROBABILITY, STRENGTH, HUE_STRENGTH = 0.8, 0.4, 0.1  # of brightness, contrast and saturation alike
GRAY_PROBABILITY = 0.2
BLUR_PROBABILITY, BLUR_SIGMA = 0.5, (0.1, 2.0)  # pixels of the output
FLIP_PROBABILITY = 0.5
CROP_ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One draw of every random choice, in the order in which they are applied."""

    box: Box
    """Part of the image that is resized to the view."""
    jitter: tuple[tuple[str, float], ...] = ()
    """(operation, strength) in the order drawn; hue is a shift in turns, the others are factors."""
    gray: bool = False
    blur: float = 0.0
    """Standard deviation in pixels of the view; 0 leaves it sharp."""
    flip: bool = False

    def inside(self, frame: Box) -> "Augmentation":
        """Return the same augmentation for the whole image, of which `frame` is a crop."""
        return self.moved(frame.top, frame.left)

    def moved(self, down: int, right: int) -> "Augmentation":
        """Return the same augmentation of a box that lies so many pixels further down and right."""
        return replace(self, box=self.box._replace(top=self.box.top + down, left=self.box.left + right))


def draw(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]) -> Augmentation:
    """Draw MoCo v2's augmentation of an image of `height` x `width` pixels.

    scale: smallest and largest share of the image's area in the crop.
    """
    box = draw_box(rng, height, width, scale)
    jitter: tuple[tuple[str, float], ...] = ()
    if rng.random() < JITTER_PROBABILITY:
        low, high = 1 - STRENGTH, 1 + STRENGTH
        strengths = (
            ("brightness", rng.uniform(low, high)),
            ("contrast", rng.uniform(low, high)),
            ("saturation", rng.uniform(low, high)),
            ("hue", rng.uniform(-HUE_STRENGTH, HUE_STRENGTH)),
        )
        jitter = tuple(strengths[i] for i in rng.permutation(len(strengths)))
    gray = rng.random() < GRAY_PROBABILITY
    blur = rng.uniform(*BLUR_SIGMA) if rng.random() < BLUR_PROBABILITY else 0.0
    return Augmentation(box=box, jitter=jitter, gray=gray, blur=blur, flip=rng.random() < FLIP_PROBABILITY)


def draw_box(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]) -> Box:
    """Draw a crop of random area and aspect; as in torchvision, the largest central one if ten draws do not fit."""
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


class DecodedImage(Protocol):
    """A decoded image that can be augmented."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a JPEG or PNG. Raises ShardError if it is damaged."""

    def apply(self, augmentation: Augmentation, size: int) -> np.ndarray:
        """Return the augmented view, uint8 RGB [3, size, size]."""


class Fast:
    """`DecodedImage` by OpenCV on uint8 RGB [H, W, 3], resized by torch, which has PIL's filter in a vectorised form.

    That resize takes a quarter of the time of OpenCV's INTER_AREA.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.pixels.shape[:2]
        return height, width

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(decode_image(data))

    def apply(self, augmentation: Augmentation, size: int) -> np.ndarray:
        view = crop_resize(self.pixels, augmentation.box, size)  # [size, size, 3]
        for operation, strength in augmentation.jitter:
            view = JITTER[operation](view, strength)
        if augmentation.gray:
            view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if sigma := augmentation.blur:
            kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma, cv2.CV_32F)
            view = cv2.sepFilter2D(view, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        if augmentation.flip:
            view = cv2.flip(view, 1)
        planes = np.empty((3, size, size), np.uint8)
        cv2.split(view, list(planes))  # several times faster than numpy's transposed copy
        return planes


class Strict:
    """`DecodedImage` by the operations of the reference implementation: torchvision's functions on PIL images."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    @classmethod
    def decode(cls, data: bytes) -> Self:
        try:
            with Image.open(io.BytesIO(data)) as image:
                return cls(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ShardError(f"image cannot be decoded ({type(error).__name__})") from None

    def apply(self, augmentation: Augmentation, size: int) -> np.ndarray:
        from torchvision.transforms import InterpolationMode  # here: its import takes each data worker two seconds
        from torchvision.transforms import functional as reference

        view = reference.resized_crop(self.image, *augmentation.box, [size, size], InterpolationMode.BILINEAR)
        for operation, strength in augmentation.jitter:
            view = getattr(reference, f"adjust_{operation}")(view, strength)
        if augmentation.gray:
            view = reference.rgb_to_grayscale(view, num_output_channels=3)
        if augmentation.blur:
            view = view.filter(ImageFilter.GaussianBlur(augmentation.blur))
        if augmentation.flip:
            view = reference.hflip(view)
        return np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]


BACKENDS: dict[Backend, type[DecodedImage]] = {"cv2": Fast, "pil": Strict, "device": Fast}


def crop_resize(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Crop `box` from an image uint8 [H, W, 3], resized to [size, size, 3]: bilinear, antialiased if it shrinks."""
    top, left, height, width = box
    crop = torch.from_numpy(image[top : top + height, left : left + width][None]).permute(0, 3, 1, 2)  # [1, 3, h, w]
    planes = interpolate(crop, (size, size), mode="bilinear", antialias=True)[0].numpy()  # [3, size, size]
    return cv2.merge(list(planes))


def affine(view: np.ndarray, factor: float, other: np.ndarray, weight: float, offset: float) -> np.ndarray:
    """Return factor * view + weight * other + offset [H, W, 3], clipped to 0..255 and rounded down as PIL does."""
    return cv2.addWeighted(view, factor, other, weight, offset - 0.5)  # OpenCV rounds to nearest


def brightness(view: np.ndarray, factor: float) -> np.ndarray:
    """Multiply a view uint8 [H, W, 3] by `factor`."""
    return affine(view, factor, view, 0, 0)


def contrast(view: np.ndarray, factor: float) -> np.ndarray:
    """Blend a view uint8 [H, W, 3] with its mean grey."""
    red, green, blue, _ = cv2.mean(view)
    mean = int(0.299 * red + 0.587 * green + 0.114 * blue + 0.5)
    return affine(view, factor, view, 0, (1 - factor) * mean)


def saturation(view: np.ndarray, factor: float) -> np.ndarray:
    """Blend a view uint8 [H, W, 3] with its grey form."""
    gray = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return affine(view, factor, gray, 1 - factor, 0)


def hue(view: np.ndarray, shift: float) -> np.ndarray:
    """Shift the hue of a view uint8 [H, W, 3] by `shift` of a full circle."""
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)  # hue in 0..255
    rotated = cv2.extractChannel(hsv, 0)
    rotated += np.uint8(int(shift * 255) % 256)  # wraps around, as hue does
    cv2.insertChannel(rotated, hsv, 0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


JITTER: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}
