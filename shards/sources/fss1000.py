"""FSS-1000: a folder a class, photographs ``N.jpg`` beside binary masks ``N.png``."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.format import ShardError
from shards.sources import Sample, Source, read_file, require_folder, unique_keys


@dataclass(frozen=True)
class FssItem:
    """A photograph of one class and its mask."""

    key: str
    source: str
    class_id: int
    image: Path

    def read(self) -> Sample:
        mask = read_mask(self.image.with_suffix(".png"))
        return Sample(image=read_file(self.image), masks={self.class_id: mask}, paint=[self.class_id])


def fss1000(root: Path) -> Source:
    """FSS-1000 in its own layout ``class/N.jpg`` + ``class/N.png``.

    Class ids count the sorted names of the class folders from 1; keys are ``class_N``.
    """
    root = require_folder(root, "--root is the folder that holds one folder a class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = {class_id: folder.name for class_id, folder in enumerate(folders, start=1)}
    # The union of both suffixes, so that a photograph or a mask without its partner is reported and not overlooked.
    found = [
        (class_id, folder / f"{stem}.jpg")
        for class_id, folder in enumerate(folders, start=1)
        for stem in sorted({path.stem for path in folder.iterdir() if path.suffix in (".jpg", ".png")}, key=_natural)
    ]
    if not found:
        raise ShardError(f"no class/N.jpg below {root}: is it the folder that holds one folder a class?")
    sources = [str(image.relative_to(root)) for _, image in found]
    keys = unique_keys([f"{image.parent.name}_{image.stem}" for _, image in found], sources)
    return Source(
        name="fss1000",
        classes=classes,
        items=[
            FssItem(key, source, class_id, image)
            for key, source, (class_id, image) in zip(keys, sources, found, strict=True)
        ],
        arguments={"root": str(root)},
    )


def read_mask(path: Path) -> np.ndarray:
    """Read a binary mask to bool [H, W].

    The set mixes encodings: 0..255 with soft edges (cut at 128) and 0/1, which looks black but is not (cut above 0).
    """
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            pixels = np.array(image.convert("RGB")).max(axis=2)    # [H, W]; drops an alpha channel
    except (OSError, SyntaxError):
        raise ShardError(f"{path} is not a whole PNG") from None
    mask = pixels >= 128 if pixels.max() > 1 else pixels > 0
    if not mask.any():
        raise ShardError(f"{path} marks no pixel")
    return mask


def _natural(stem: str) -> tuple:
    return (0, int(stem), "") if stem.isdecimal() else (1, 0, stem)
