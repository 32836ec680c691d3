"""Readers of native data set layouts.

A family of data sets is one function that returns a :class:`Source`: a list of items that is cheap and known in
advance, so that packing can be divided among processes and restarted. The expensive part is each item's ``read``, which
runs in a worker process and is therefore a method of a small, picklable object.
"""

import errno
import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from shards.format import ReadError, ShardError

MAX_KEY = 80  # characters; a ustar member name has 100, and '.felzenszwalb.png' is the longest extension
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)  # there is no such file


@dataclass(kw_only=True)
class Sample:
    """One image with its labels, before it is checked and encoded."""

    image: bytes
    """JPEG or PNG, byte for byte as in the source."""
    masks: dict[int, np.ndarray] = field(default_factory=dict)
    """Class id -> bool [H, W], at least one pixel set."""
    paint: list[int] = field(default_factory=list)
    """Class ids in painting order, later over earlier."""
    ignore: np.ndarray | None = None
    """bool [H, W]."""
    labels: np.ndarray | None = None
    """The exact flattened map [H, W], if the source defines one that painting whole masks may not give."""
    instances: list[dict] = field(default_factory=list)
    """As in shards.format.Meta."""
    crop_of: str = ""
    """As in shards.format.Meta."""


class Item(Protocol):
    """One image to be read; a small picklable object."""

    @property
    def key(self) -> str:
        """Key of the sample in the packed set."""

    @property
    def source(self) -> str:
        """Path below the data set's root, or an id, by which a person finds the image."""

    def read(self) -> Sample:
        """Read the sample from disk.

        Raises ReadError if the disk has a fault, any other error if a file is missing or damaged.
        """


@dataclass(kw_only=True)
class Source:
    """A data set that can be packed."""

    name: str
    """First part of the names of the shards."""
    classes: dict[int, str]
    """Class id -> name; empty for unlabelled images."""
    items: Sequence[Item]
    arguments: dict = field(default_factory=dict)
    """Values that decide the content besides keys and sources of the items; part of the fingerprint."""
    messages: list[str] = field(default_factory=list)
    """Sentences about parts of the source that are packed in another form."""


def unique_keys(names: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Return sample keys for `names`: ASCII, without dots and slashes, short enough for a tar header, all different.

    Names that would give equal keys, or are too long, get a digest of their source (a unique path) as a suffix, so that
    a key does not depend on the order of the list.
    """

    def digest(source: str) -> str:
        return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:10]

    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", unicodedata.normalize("NFKD", name)) for name in names]
    times = Counter(plain)
    return [
        key if times[key] == 1 and 0 < len(key) <= MAX_KEY else f"{key[: MAX_KEY - 11]}-{digest(source)}"
        for key, source in zip(plain, sources, strict=True)
    ]


def read_file(path: Path) -> bytes:
    """Return the bytes of `path`. Raises ShardError if there is no such file, ReadError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in MISSING:
            raise ShardError(f"{path}: {error.strerror}") from None
        raise ReadError(f"{path} cannot be read ({error.strerror})") from None


def require_folder(path: Path, what: str) -> Path:
    """Return `path`, absolute. Raises ShardError unless it is a folder; `what` describes the folder that is needed."""
    if not path.is_dir():
        raise ShardError(f"{path} is not a folder: {what}")
    return path.resolve()


def read_index_map(path: Path) -> np.ndarray:
    """Read a palette or grey PNG of class indices, uint8 [H, W]. Raises ShardError if it is anything else."""
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            if image.mode not in ("P", "L"):
                raise ShardError(f"{path} is a PNG of mode {image.mode}: class indices need a palette or grey PNG")
            return np.array(image)
    except (OSError, SyntaxError):
        raise ShardError(f"{path} is not a whole PNG") from None


def index_masks(
    labels: np.ndarray, classes: Collection[int], ignored: int, background: int | None = 0
) -> tuple[dict[int, np.ndarray], np.ndarray | None]:
    """Split an index map [H, W] into class masks and the ignore mask, bool [H, W] (None if nothing is ignored).

    Raises ShardError for an index that is neither `background`, nor a class, nor `ignored`.
    """
    present = [int(index) for index in np.unique(labels)]
    objects = [index for index in present if index not in (background, ignored)]
    unknown = [index for index in objects if index not in classes]
    if unknown:
        raise ShardError(f"mask holds index {unknown[0]}, which is none of the {len(classes)} classes")
    return {index: labels == index for index in objects}, labels == ignored if ignored in present else None
