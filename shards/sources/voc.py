"""PASCAL VOC and SBD: images beside index maps of 20 classes, and list files of the images in the set."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from shards.format import IGNORE_LABEL, ShardError
from shards.sources import Sample, Source, index_masks, read_file, read_index_map, require_folder, unique_keys

CLASSES = dict(
    enumerate(
        (
            "aeroplane",
            "bicycle",
            "bird",
            "boat",
            "bottle",
            "bus",
            "car",
            "cat",
            "chair",
            "cow",
            "diningtable",
            "dog",
            "horse",
            "motorbike",
            "person",
            "pottedplant",
            "sheep",
            "sofa",
            "train",
            "tvmonitor",
        ),
        start=1,
    )
)

IMAGE_FOLDERS = ("JPEGImages", "img")
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass", "cls")


@dataclass(frozen=True)
class VocItem:
    """`Item`: a photograph and its index map, a palette or grey PNG or SBD's .mat."""

    key: str
    source: str
    image: Path
    mask: Path

    def read(self) -> Sample:
        labels = _read_mat(self.mask) if self.mask.suffix == ".mat" else read_index_map(self.mask)
        masks, ignore = index_masks(labels, CLASSES, IGNORE_LABEL)
        return Sample(image=read_file(self.image), masks=masks, paint=sorted(masks), ignore=ignore)


def voc(
    root: Path,
    ids: Path | Sequence[Path],
    masks: str | None = None,
    *,
    sbd: Path | None = None,
    exclude: Path | None = None,
) -> Source:
    """PASCAL VOC in its own layout, or SBD's (``img/*.jpg``, ``cls/*.mat``); index 255 is ignored, never an object.

    Lines of the list files `ids` are ids (``2007_000032``), pairs of paths below `root` (``JPEGImages/2007_000032.jpg
    SegmentationClassAug/2007_000032.png``) or PASCAL-5i entries (``2007_000032__15``); an image named several times is
    packed once. exclude: a list of images to leave out. masks: name of the folder of index maps below `root`; by
    default the first that exists of SegmentationClassAug, SegmentationClass and cls. sbd: the folder with SBD's cls,
    for the ids without a map there. Raises ShardError if a folder or list is missing or a line is wrong.
    """
    root = require_folder(root, "--root is the folder that holds JPEGImages, or SBD's img")
    image_folder = _first_folder(root, IMAGE_FOLDERS)
    mask_folder = root / masks if masks else _first_folder(root, MASK_FOLDERS)
    require_folder(mask_folder, "--masks names the folder of index maps below --root")
    suffix = ".mat" if any(mask_folder.glob("*.mat")) else ".png"
    sbd_masks = sbd and require_folder(sbd / "cls", "--sbd is the folder of SBD that holds cls")

    def pair(words: list[str]) -> tuple[Path, Path]:
        if len(words) == 2:
            return root / words[0].lstrip("/"), root / words[1].lstrip("/")
        stem = words[0].split("__")[0]
        mask = mask_folder / f"{stem}{suffix}"
        return image_folder / f"{stem}.jpg", sbd_masks / f"{stem}.mat" if sbd_masks and not mask.exists() else mask

    left_out = {pair(words)[0] for words in _lines(exclude)} if exclude else set()
    pairs: dict[Path, Path] = {}  # image -> mask, in the order of the lists
    for words in chain.from_iterable(map(_lines, [ids] if isinstance(ids, Path) else ids)):
        image, mask = pair(words)
        if image not in left_out:
            pairs.setdefault(image, mask)
    sources = [str(image.relative_to(root)) for image in pairs]
    keys = unique_keys([image.stem for image in pairs], sources)
    return Source(
        name="voc",
        classes=CLASSES,
        items=[
            VocItem(key, source, image, mask)
            for key, source, (image, mask) in zip(keys, sources, pairs.items(), strict=True)
        ],
        arguments={"root": str(root), "masks": mask_folder.name} | ({"sbd": str(sbd)} if sbd else {}),
    )


def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the words of every line of a list: an id, or an image and its mask."""
    for number, line in enumerate(read_file(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        match words := line.split():
            case []:
                continue
            case [_]:
                yield words
            case [_, mask] if mask.endswith((".png", ".mat")):
                yield words
            case _:
                raise ShardError(
                    f"line {number} of {path} is {line.strip()[:80]!r}: expected an id, 'image.jpg mask.png' or "
                    "'id__class'"
                )


def _first_folder(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ShardError(f"{root} has none of the folders {', '.join(names)}: is it the VOCdevkit/VOC2012 folder?")


def _read_mat(path: Path) -> np.ndarray:
    from scipy.io import loadmat  # here: every data worker imports this module for its classes

    raw: Any = io.BytesIO(read_file(path))  # the stubs of loadmat list paths alone
    try:
        labels = loadmat(raw, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation
    except Exception as error:  # scipy's reader fails in many ways on a damaged file
        raise ShardError(f"{path} has no GTcls.Segmentation ({type(error).__name__}: {error})") from None
    return np.asarray(labels)
