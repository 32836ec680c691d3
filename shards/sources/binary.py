"""A photograph of one class beside a binary mask, the layout of FSS-1000, DeepGlobe and ISIC."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.format import ShardError
from shards.sources import Sample, read_file


@dataclass(frozen=True)
class BinaryItem:
    """`Item`: a photograph of one class and its mask."""

    key: str
    source: str
    class_id: int
    image: Path
    mask: Path

    def read(self) -> Sample:
        masks = {self.class_id: read_mask(self.mask)}
        return Sample(image=read_file(self.image), masks=masks, paint=[self.class_id])


def read_mask(path: Path) -> np.ndarray:
    """Read a binary mask to bool [H, W].

    The sets mix encodings: 0..255 with soft edges (threshold 128) and 0/1, which looks black (threshold 1).
    Raises ShardError if the file is damaged or no pixel is marked.
    """
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            pixels = np.array(image.convert("RGB")).max(axis=2)  # [H, W]; drops an alpha channel
    except (OSError, SyntaxError):
        raise ShardError(f"{path} is not a whole PNG") from None
    mask = pixels >= 128 if pixels.max() > 1 else pixels > 0
    if not mask.any():
        raise ShardError(f"{path} marks no pixel")
    return mask
