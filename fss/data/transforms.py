"""From a labelled sample to what a network sees of it, and from its logits back to where a protocol scores them."""

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
"""How an image is put into a square: see `fit_image`."""
Resolution = Literal["original"] | int
"""Where predictions are scored: at the image's own size, or in a square of so many pixels."""

STEP = 8  # pixels that 'compat' rounds down to
MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # of ImageNet's channels
STD = 255 * torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def read_labelled(shards: ShardSet, index: int, class_id: int, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 RGB [H, W, 3] of sample `index` and its mask of one class, uint8 [H, W] as of `class_mask`.

    Raises ShardError, the sample's key in front, where either cannot be read or their sizes differ.
    """
    with sample_context(shards.keys[index]):
        members = shards.read(index)
        image = decode_image(image_bytes(members))
        mask = class_mask(members, class_id, labels)
        require_same_size(mask, image.shape[:2])
    return image, mask


def class_mask(members: dict[str, bytes], class_id: int, labels: Labels) -> np.ndarray:
    """The mask of one class, uint8 [H, W]: 1 the class, 255 ignored, 0 all else.

    A class's own mask holds over the ignored pixels. Of a flat label map only what other classes leave uncovered is
    the class's, which may be nothing.

    Raises ShardError where the class is not in the sample or its members are damaged.
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
    own = stored(members, f"mask.{class_id}.png", meta)  # [H, W]
    mask = own.astype(np.uint8)
    if "ignore.png" in members:
        mask[stored(members, "ignore.png", meta) & ~own] = IGNORE_LABEL
    return mask


def flat_labels(members: dict[str, bytes], meta: Meta) -> np.ndarray:
    """The sample's flat label map uint8 or uint16 [H, W], see shards.codec.flatten."""
    if "labels.png" in members:
        return stored(members, "labels.png", meta, decode_labels)
    masks = {}
    for class_id in meta.paint:
        if f"mask.{class_id}.png" not in members:
            raise ShardError(f"has no mask of class {class_id}, which its metadata list: pack the set again")
        masks[class_id] = stored(members, f"mask.{class_id}.png", meta)
    ignore = stored(members, "ignore.png", meta) if "ignore.png" in members else None
    return flatten(masks, meta.paint, ignore, (meta.height, meta.width))


def stored(members: dict[str, bytes], name: str, meta: Meta, decode: Callable = decode_mask) -> np.ndarray:
    """The mask or label map `name` of a sample, [H, W]. Raises ShardError where it is damaged or of another size."""
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
    """Put an image uint8 [H, W, 3] into a square for a network: standardised float32 [3, size, size], and where it is.

    'exact': the longer side becomes `size`, the other keeps the aspect to half a pixel, the rest is the mean colour.
    'compat': as PFENet's and BAM's test transform has it: both sides rounded down to multiples of 8 after scaling, the
    rest black. 'squash': both sides become `size`, to the bit what Pillow makes of it (HSNet, GF-SAM). The image lies
    in the top left corner. 'compat' interpolates float values without antialiasing, as its originals do; the others
    antialias where they shrink.
    """
    frame = Frame.fit(*image.shape[:2], size, rule)
    height, width = frame.valid_h, frame.valid_w
    if rule == "compat":
        resized = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        valid = torch.from_numpy(resized).permute(2, 0, 1)  # [3, h, w]
        fitted = (-MEAN / STD).repeat(1, size, size)
    elif rule == "squash":
        resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
        valid = torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # [3, S, S]
        fitted = torch.empty(3, size, size)
    else:
        valid = resize(image, height, width)  # [3, h, w]
        fitted = torch.zeros(3, size, size)
    fitted[:, :height, :width].copy_(valid).sub_(MEAN).div_(STD)
    return fitted, frame


def resize(image: np.ndarray, height: int, width: int) -> Tensor:
    """An image uint8 [H, W, 3] resized to uint8 [3, height, width]: bilinear, antialiased where it shrinks."""
    planes = torch.from_numpy(image[None]).permute(0, 3, 1, 2)  # [1, 3, H, W]
    return interpolate(planes, (height, width), mode="bilinear", antialias=True)[0]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where an image lies in its square: the first `valid_h` rows and `valid_w` columns of it."""

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
        """The frame of an image of `height` x `width` pixels under a rule; a side is never less than 1 or 8 pixels."""
        longer = max(height, width)
        if rule == "exact":
            valid = [max(1, round(side * size / longer)) for side in (height, width)]
        elif rule == "compat":
            ratio = size / longer  # in the originals' order of operations, for the same roundings
            scaled = [size if side == longer else int(side * ratio) for side in (height, width)]
            valid = [max(STEP, side // STEP * STEP) for side in scaled]
        else:
            valid = [size, size]
        return cls(height=height, width=width, size=size, rule=rule, valid_h=valid[0], valid_w=valid[1])

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask uint8 [H, W] of 0, 1 and 255 as the network sees it: [S, S], nearest, 255 outside the image.

        Raises ShardError where it has not the image's size.
        """
        require_same_size(mask, (self.height, self.width))
        if self.rule == "squash":
            return _nearest(mask, self.size)
        # INTER_NEAREST takes the pixel at the corner of each cell, half a pixel off; the originals used it.
        nearest = cv2.INTER_NEAREST_EXACT if self.rule == "exact" else cv2.INTER_NEAREST
        fitted = np.full((self.size, self.size), IGNORE_LABEL, np.uint8)
        fitted[: self.valid_h, : self.valid_w] = cv2.resize(mask, (self.valid_w, self.valid_h), interpolation=nearest)
        return fitted

    def resize_margin(self, margin: Tensor, resolution: Resolution) -> Tensor:
        """Bring a margin of class over background, float32 [1, 1, S, S], to where it is scored: [h, w].

        'compat' at original resolution stretches the square to max(H, W) pixels and cuts the image's size from it, as
        its originals do, though rounding to 8 has moved the image by up to some percent. Everything else stretches
        the valid region alone.
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
        """The prediction uint8 [h, w] of a margin [1, 1, S, S]: 1 where it is above 0 once resized."""
        return (self.resize_margin(margin, resolution) > 0).to(torch.uint8).cpu().numpy()

    def truth(self, mask: np.ndarray, resolution: Resolution) -> np.ndarray:
        """The mask uint8 [H, W] where `restore` puts the prediction: [h, w]. Raises ShardError as `mask` does."""
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
