"""Labelled samples as input of a network, and its logits at the size at which a protocol scores them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from fss.datasets.base import Labels
from shards.codec import decode_image, decode_labels, decode_mask, flatten, image_bytes
from shards.format import IGNORE_LABEL, Meta, ShardError
from shards.read import ShardSet, sample_context

Resize = Literal["exact", "compat", "squash"]
"""Rule that puts an image into a square: see `fit_image`."""
Resolution = Literal["original"] | int
"""Size at which predictions are scored: the image's own, or a square of so many pixels a side."""

STEP = 8  # pixels that 'compat' rounds down to
MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # of ImageNet's channels
STD = 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def read_labelled(shards: ShardSet, index: int, class_id: int, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Return image uint8 RGB [H, W, 3] of sample `index` and its mask of one class, uint8 [H, W] as of `class_mask`.

    Raises ShardError with the sample's key if either cannot be read or their sizes differ.
    """
    with sample_context(shards.keys[index]):
        members = shards.read(index)
        image = decode_image(image_bytes(members))
        mask = class_mask(members, class_id, labels)
        require_same_size(mask, image.shape[:2])
    return image, mask


def class_mask(members: dict[str, bytes], class_id: int, labels: Labels) -> np.ndarray:
    """Return the mask of one class, uint8 [H, W]: 1 the class, 255 ignored, 0 all else.

    A class's own mask has priority over the ignored pixels. In a flat label map the class has only the pixels that
    other classes do not cover, perhaps none.

    Raises ShardError if the class is not in the sample or its members are damaged.
    """
    if f"mask.{class_id}.png" not in members:
        raise ShardError(f"has no mask of class {class_id}, which the manifest lists: pack the set again")
    meta = Meta.decode(members.get("json", b""))
    if labels == "flat":
        flat = flat_labels(members, meta)  # [H, W]
        mask = (flat == class_id).astype(np.uint8)
        if f"mask.{IGNORE_LABEL}.png" not in members:  # else 255 is a class
            mask[flat == IGNORE_LABEL] = IGNORE_LABEL
        return mask
    own = decode_member(members, f"mask.{class_id}.png", meta)  # [H, W]
    mask = own.astype(np.uint8)
    if "ignore.png" in members:
        mask[decode_member(members, "ignore.png", meta) & ~own] = IGNORE_LABEL
    return mask


def flat_labels(members: dict[str, bytes], meta: Meta) -> np.ndarray:
    """Return the sample's flat label map uint8 or uint16 [H, W], see shards.codec.flatten.

    Raises ShardError if a mask is missing, damaged or of another size.
    """
    if "labels.png" in members:
        return decode_member(members, "labels.png", meta, decode_labels)
    masks = {}
    for class_id in meta.paint:
        if f"mask.{class_id}.png" not in members:
            raise ShardError(f"has no mask of class {class_id}, which its metadata list: pack the set again")
        masks[class_id] = decode_member(members, f"mask.{class_id}.png", meta)
    ignore = decode_member(members, "ignore.png", meta) if "ignore.png" in members else None
    return flatten(masks, meta.paint, ignore, (meta.height, meta.width))


def decode_member(
    members: dict[str, bytes], name: str, meta: Meta, decode: Callable[[bytes], np.ndarray] = decode_mask
) -> np.ndarray:
    """Decode member `name` of a sample, a mask or label map [H, W]. Raises ShardError if damaged or of another size."""
    with sample_context(name):
        array = decode(members[name])
        require_same_size(array, (meta.height, meta.width))
    return array


def require_same_size(mask: np.ndarray, image: tuple[int, ...]) -> None:
    """Raise ShardError unless a mask [H, W] has its image's (height, width)."""
    if mask.shape != image:
        raise ShardError(
            f"the mask is {mask.shape[1]}x{mask.shape[0]} pixels, the image {image[1]}x{image[0]}: pack the set again"
        )


def fit_image(image: np.ndarray, size: int, rule: Resize) -> tuple[Tensor, "Frame"]:
    """Put an image uint8 [H, W, 3] into a square: normalised float32 [3, size, size], and the frame that locates it.

    'exact': the longer side becomes `size`, the other keeps the aspect to half a pixel, the rest is the mean colour.
    'compat': the test transform of PFENet and BAM: both sides rounded down to multiples of 8 after scaling, the rest
    black. 'squash': both sides become `size`, bit for bit as by Pillow (HSNet, GF-SAM). The image lies in the top left
    corner. 'compat' interpolates float values without antialiasing, as the reference implementations do; the others
    use antialiasing if they shrink the image.
    """
    rows, columns = image.shape[:2]
    frame = Frame.fit(rows, columns, size, rule)
    height, width = frame.valid_h, frame.valid_w
    if rule == "compat":
        scaled = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        valid = torch.from_numpy(scaled).permute(2, 0, 1)  # [3, h, w]
        fitted = (-MEAN / STD).repeat(1, size, size)
    elif rule == "squash":
        squashed = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        valid = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)  # [3, S, S]
        fitted = torch.empty(3, size, size)
    else:
        valid = resize(image, height, width)  # [3, h, w]
        fitted = torch.zeros(3, size, size)
    fitted[:, :height, :width].copy_(valid).sub_(MEAN).div_(STD)
    return fitted, frame


def resize(image: np.ndarray, height: int, width: int) -> Tensor:
    """Resize an image uint8 [H, W, 3] to uint8 [3, height, width]: bilinear, antialiased if it shrinks."""
    planes = torch.from_numpy(image[None]).permute(0, 3, 1, 2)  # [1, 3, H, W]
    return interpolate(planes, (height, width), mode="bilinear", antialias=True)[0]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Place of an image in its square: the first `valid_h` rows and `valid_w` columns."""

    height: int
    """Rows of the image."""
    width: int
    """Columns of the image."""
    size: int
    """Side of the square."""
    rule: Resize
    valid_h: int
    valid_w: int

    @classmethod
    def fit(cls, height: int, width: int, size: int, rule: Resize) -> "Frame":
        """Return the frame of an image of `height` x `width` pixels; a side has at least 1 pixel, 8 under 'compat'."""
        longer = max(height, width)
        if rule == "exact":
            valid = [max(1, round(side * size / longer)) for side in (height, width)]
        elif rule == "compat":
            ratio = size / longer  # in the reference's order of operations, for the same roundings
            scaled = [size if side == longer else int(side * ratio) for side in (height, width)]
            valid = [max(STEP, side // STEP * STEP) for side in scaled]
        else:
            valid = [size, size]
        return cls(height=height, width=width, size=size, rule=rule, valid_h=valid[0], valid_w=valid[1])

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Fit a mask uint8 [H, W] of 0, 1 and 255 like the image: [S, S], nearest, 255 outside the image.

        Raises ShardError if it does not have the image's size.
        """
        require_same_size(mask, (self.height, self.width))
        if self.rule == "squash":
            return _nearest(mask, self.size)
        # INTER_NEAREST takes the pixel at the corner of each cell, half a pixel off; the reference uses it.
        nearest = cv2.INTER_NEAREST_EXACT if self.rule == "exact" else cv2.INTER_NEAREST
        fitted = np.full((self.size, self.size), IGNORE_LABEL, np.uint8)
        fitted[: self.valid_h, : self.valid_w] = cv2.resize(mask, (self.valid_w, self.valid_h), interpolation=nearest)
        return fitted

    def resize_margin(self, margin: Tensor, resolution: Resolution) -> Tensor:
        """Resize a margin of class over background, float32 [1, 1, S, S], to the size at which it is scored: [h, w].

        'compat' at original resolution resizes the square to max(H, W) pixels and crops it to the image's size, as the
        reference does, although the rounding to 8 has moved the image by a few percent. All other cases resize the
        valid region alone.
        """
        height, width = self._scored(resolution)
        if self.rule == "compat" and resolution == "original":
            side = max(height, width)
            margin = interpolate(margin, (side, side), mode="bilinear", align_corners=True)[..., :height, :width]
        else:
            margin = margin[..., : self.valid_h, : self.valid_w]
            margin = interpolate(margin, (height, width), mode="bilinear", align_corners=False)
        return margin[0, 0]

    def restore(self, margin: Tensor, resolution: Resolution) -> np.ndarray:
        """Return the prediction uint8 [h, w] of a margin [1, 1, S, S]: 1 on pixels above 0 after resizing."""
        return (self.resize_margin(margin, resolution) > 0).to(torch.uint8).cpu().numpy()

    def truth(self, mask: np.ndarray, resolution: Resolution) -> np.ndarray:
        """Resize a mask uint8 [H, W] to the size of `restore`: [h, w]. Raises ShardError as `mask`."""
        require_same_size(mask, (self.height, self.width))
        if resolution == "original":
            return mask
        return _nearest(mask, resolution)

    def _scored(self, resolution: Resolution) -> tuple[int, int]:
        return (self.height, self.width) if resolution == "original" else (resolution, resolution)


def _nearest(mask: np.ndarray, size: int) -> np.ndarray:
    """[H, W] -> [size, size] as torch's 'nearest', which HSNet and GF-SAM resize masks by; OpenCV's differs by a pixel
    at some sizes."""
    steps = np.arange(size, dtype=np.float32)
    rows, columns = ((steps * np.float32(side / size)).astype(np.intp) for side in mask.shape)
    return mask[rows[:, None], columns]
