"""The draws of many views as tables, which `fss.data.augment_device` applies to all of them at once.

What depends on a draw is computed here, by the data workers: the weights of the resize, the order of the colour
operations, the blur kernels. The weights of the resize are multiples of a power of two, so that sums of weighted pixels
are exact in float32, in any order, with the factors of TF32 too: a crop does not depend on the other views of its
batch, nor on the algorithm of a matrix product.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fss.data.augment import BLUR_SIGMA, Augmentation
from fss.data.tensor_fields import TensorFields

RESIZE_STEPS = 2**11  # a weight of the resize is a multiple of 1 / 2048: the precision of TF32
BLUR_RADIUS = math.ceil(3 * BLUR_SIGMA[1])
DOWN = -0.5  # makes rounding to the nearest number one that rounds down, as PIL does
SLOTS = 3  # operations other than the shift of hue; as many can precede or follow it


@dataclass(kw_only=True)
class Taps:
    """The resize of n views along one axis: pixel i of a view is a weighted sum of T neighbouring pixels."""

    first: Tensor
    """[n, S] int32, the first of the T pixels."""
    weight: Tensor
    """[n, S, T] float32, with sum 1."""


@dataclass(kw_only=True)
class AugmentTables(TensorFields):
    """The draws of V views each of B images, n = V B rows: all first views, then all second ones.

    `order` sorts the rows by the number of colour operations before the shift of hue, so that the rows of each step are
    neighbours; the tables after it are in this order.
    """

    column_first: Tensor
    """[V, B, S] int32, see `Taps`; a flipped view has its columns in reverse."""
    column_weight: Tensor
    """[V, B, S, T] float32."""
    row_first: Tensor
    """[V, B, S] int32."""
    row_weight: Tensor
    """[V, B, S, T] float32."""
    order: Tensor
    """[n] int64, the row that is at each place."""
    place: Tensor
    """[n] int64, the place of each row."""
    before: tuple[slice, ...]
    """Places of the rows with a first, second and third operation before the shift of hue."""
    hue_rows: slice
    """Places of the rows whose hue is shifted."""
    after: tuple[slice, ...]
    """Places of the rows with a first, second and third operation after the shift of hue."""
    affine: Tensor
    """[2, 3, n, 4] float32, of each operation before and after: the weights of the view, of its grey form and of its
    mean grey, and what is added."""
    hue: Tensor
    """[n] float32, shift of the hue in 1/256 of a circle."""
    gray: Tensor
    """[n] bool."""
    blurred: Tensor
    """[m] int64, places of the blurred rows."""
    kernel: Tensor
    """[m, 13] float32, the blur of these along one axis."""


def tabulate(views: Sequence[Sequence[Augmentation]], size: int, height: int, width: int) -> AugmentTables:
    """Write the draws of V lists of B views down as tables.

    size: side of the views. height, width: of the largest images of the batch, pixels.
    Raises ValueError for jitter without a shift of hue, which `draw` does not make.
    """
    rows = [augmentation for of_view in views for augmentation in of_view]
    top, left, crop_height, crop_width = np.array([row.box for row in rows], np.float32).T
    flip = np.array([row.flip for row in rows])
    columns = resize_taps(left, crop_width, size, width, flip)
    lines = resize_taps(top, crop_height, size, height, np.zeros_like(flip))
    counts = np.array([before_hue(row) for row in rows])
    order = np.argsort(-counts, kind="stable")
    place = np.argsort(order)
    jittered = int((counts >= 0).sum())
    affine, hue = colour_tables([rows[i] for i in order])
    blurred = [i for i, row in enumerate(rows) if row.blur]
    kernels = np.zeros((len(blurred), 2 * BLUR_RADIUS + 1), np.float32)
    for kernel, i in zip(kernels, blurred, strict=True):
        kernel[:] = blur_kernel(rows[i].blur)
    return AugmentTables(
        column_first=columns.first.unflatten(0, (len(views), -1)),
        column_weight=columns.weight.unflatten(0, (len(views), -1)),
        row_first=lines.first.unflatten(0, (len(views), -1)),
        row_weight=lines.weight.unflatten(0, (len(views), -1)),
        order=torch.from_numpy(order),
        place=torch.from_numpy(place),
        before=tuple(slice(0, int((counts > slot).sum())) for slot in range(SLOTS)),
        hue_rows=slice(0, jittered),
        after=tuple(slice(int((counts >= SLOTS - slot).sum()), jittered) for slot in range(SLOTS)),
        affine=torch.from_numpy(affine),
        hue=torch.from_numpy(hue),
        gray=torch.tensor([rows[i].gray for i in order]),
        blurred=torch.from_numpy(place[blurred]),
        kernel=torch.from_numpy(kernels),
    )


def before_hue(augmentation: Augmentation) -> int:
    """Count the operations before the shift of hue; -1 without jitter. Raises ValueError for jitter without a shift."""
    names = [name for name, _ in augmentation.jitter]
    if names and "hue" not in names:
        raise ValueError("jitter without a shift of hue has no place among the tables")
    return names.index("hue") if names else -1


def colour_tables(rows: Sequence[Augmentation]) -> tuple[np.ndarray, np.ndarray]:
    """Return `affine` [2, 3, n, 4] and `hue` [n] of `AugmentTables`, both float32."""
    affine = np.zeros((2, SLOTS, len(rows), 4), np.float32)
    affine[..., 0] = 1  # nothing changes
    hue = np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        shift = before_hue(row)
        for position, (name, strength) in enumerate(row.jitter):
            if position < shift:
                affine[0, position, i] = AFFINE[name](strength)
            elif position > shift:
                affine[1, position - shift - 1, i] = AFFINE[name](strength)
            else:
                hue[i] = int(strength * 255) % 256  # as OpenCV's backend rounds it
    return affine, hue


AFFINE: dict[str, Callable[[float], tuple[float, float, float, float]]] = {
    "brightness": lambda factor: (factor, 0, 0, DOWN),
    "contrast": lambda factor: (factor, 0, 1 - factor, DOWN),
    "saturation": lambda factor: (factor, 1 - factor, 0, DOWN),
}
"""Operation -> a row of `AugmentTables.affine` by the factor."""


def resize_taps(start: np.ndarray, length: np.ndarray, size: int, extent: int, flip: np.ndarray) -> Taps:
    """Compute the antialiased bilinear resize of n crops along one axis, as torch and PIL do it.

    start, length: [n], pixels of the crop. extent: pixels of the largest image. flip: [n] bool, mirrored or not.
    """
    scale = length / size  # [n]
    reach = np.maximum(scale, 1)[:, None]  # half of the width of the triangular filter, in pixels
    target = np.where(flip[:, None], np.arange(size)[::-1], np.arange(size))  # [n, S]
    centre = start[:, None] + (target + np.float32(0.5)) * scale[:, None]  # [n, S]
    taps = min(int(2 * reach.max()) + 2, extent)
    first = np.clip(np.floor(centre - reach + 0.5), 0, extent - taps).astype(np.int32)
    pixel = first[:, :, None] + np.arange(taps, dtype=np.int32)  # [n, S, T]
    distance = np.abs(pixel + np.float32(0.5) - centre[:, :, None])
    weight = np.maximum(1 - distance / reach[:, :, None], 0)
    weight *= (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weight = np.rint(weight * (RESIZE_STEPS / weight.sum(2, keepdims=True)))
    largest = weight.argmax(2)[:, :, None]
    rest = RESIZE_STEPS - weight.sum(2, keepdims=True)
    np.put_along_axis(weight, largest, np.take_along_axis(weight, largest, 2) + rest, 2)
    return Taps(first=torch.from_numpy(first), weight=torch.from_numpy((weight / RESIZE_STEPS).astype(np.float32)))


def blur_kernel(sigma: float) -> np.ndarray:
    """Return the blur of `fss.data.augment.Fast` along one axis, [13] float32."""
    radius = math.ceil(3 * sigma)
    return np.pad(cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)[:, 0], BLUR_RADIUS - radius)
