"""A user's own pictures as arrays: photographs and masks of every kind that people have."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fss.errors import UserError
from shards.format import IGNORE_LABEL

Picture = str | Path | np.ndarray
"""A file, or what is in it: a photograph uint8 RGB [H, W, 3], or a mask of integers or truth values [H, W]."""
SOFT = 128  # where the soft edge of a painted mask is cut


def read_photograph(picture: Picture) -> np.ndarray:
    """uint8 RGB [H, W, 3], turned as its camera says; grey (8 or 16 bits), palette and transparent files too.

    Raises UserError where the file is missing or no picture, or an array is of another kind.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(f"a photograph is an array {picture.dtype} {[*picture.shape]}: give uint8 [H, W, 3], RGB")
        return picture
    opened = _open(picture)
    if opened.mode.startswith("I;16"):  # whose values Pillow would cut off at 255
        opened = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
    elif opened.mode in ("I", "F"):
        raise UserError(f"{picture} has values of 32 bits, whose white is not known: save it with 8 bits")
    return np.array(opened.convert("RGB"))


def read_mask(picture: Picture) -> np.ndarray:
    """Read a mask to uint8 [H, W]: 1 the class, 0 not, 255 unknown. Raises UserError if it is unreadable or no mask.

    In colour every pixel that is neither black nor transparent is the class, of an index or grey map every value but 0.
    Beside others, an index of 255 is unknown, as in PASCAL VOC; in a grey map only where these are below 128, for
    painted masks have soft edges: they are cut at 128. A JPEG is cut at half of its brightest value.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype.kind not in "bui" or picture.ndim != 2:
            raise UserError(f"a mask is an array {picture.dtype} {[*picture.shape]}: give whole numbers or bool [H, W]")
        return _marked(picture.astype(np.int64), index=False)
    opened = _open(picture)
    if opened.format == "JPEG":
        values = np.asarray(opened.convert("RGB")).max(2)  # [H, W]
        return (values > values.max() // 2).astype(np.uint8)
    if opened.mode in ("1", "L", "P", "I", "I;16"):
        return _marked(np.asarray(opened).astype(np.int64), index=opened.mode == "P")
    *colours, alpha = np.moveaxis(np.asarray(opened.convert("RGBA")), 2, 0)
    return ((np.maximum.reduce(colours) > 0) & (alpha > 0)).astype(np.uint8)


def _marked(values: np.ndarray, *, index: bool) -> np.ndarray:
    """The mask in an index or grey map, int64 [H, W]."""
    others = values[(values > 0) & (values != IGNORE_LABEL)]
    if len(others) == 0 or IGNORE_LABEL not in values:
        return (values > 0).astype(np.uint8)
    if not index and others.max() >= SOFT:
        return (values >= SOFT).astype(np.uint8)
    return np.where(values == IGNORE_LABEL, IGNORE_LABEL, values > 0).astype(np.uint8)


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            opened.load()
            turned = ImageOps.exif_transpose(opened)
            turned.format = opened.format
            return turned
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): give a JPEG or PNG") from None
