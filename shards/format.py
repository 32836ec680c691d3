"""The format on disk: a folder of WebDataset tars and one ``manifest.json`` beside them.

A sample ``KEY`` is a run of consecutive tar members that share the name up to the first dot:

    KEY.jpg | KEY.png             the image, byte for byte as in the source
    KEY.json                      metadata, see :class:`Meta`
    KEY.mask.<class id>.png       one 1-channel PNG (0 or 255) per class present, so that overlapping
                                  objects of different classes keep all their pixels
    KEY.ignore.png                pixels that no metric may count (255); absent if nothing is ignored;
                                  a class's own mask has priority over it
    KEY.labels.png                the flattened label map, present only if no order of painting whole class
                                  masks gives it (COCO paints object by object), see shards.codec.flatten
    KEY.<algorithm>.png           superpixel label map at half resolution, 8 or 16 bit, ids contiguous from 0;
                                  algorithm is 'slic' or 'felzenszwalb'

KEY is ASCII without dots or slashes. Any WebDataset reader can stream these tars. The manifest gives shard, byte
offset and length of every sample, so that a sample of a local shard is one ``pread``; shards/codec.py decodes it.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

VERSION = 1
MANIFEST = "manifest.json"
IMAGE_SUFFIXES = ("jpg", "png")
IGNORE_LABEL = 255
SUPERPIXEL_STRIDE = 2  # label maps are stored at half resolution
HOST = socket.gethostname().replace(".", "-")


class ShardError(ValueError):
    """A packed set or a source folder does not have the required form; the message has the place and the remedy."""


class ReadError(ShardError):
    """A file exists and cannot be read: a fault of the disk or the machine, not of the sample."""


@dataclass(kw_only=True)
class Meta:
    """``KEY.json``: the properties of a sample that need no decoding."""

    source: str
    """Path or id in the source data set."""
    height: int
    width: int
    classes: dict[int, int] = field(default_factory=dict)
    """Class id -> area in pixels at original size."""
    paint: list[int] = field(default_factory=list)
    """Class ids in the order in which their masks are painted, later over earlier, to flatten them to one label map."""
    instances: list[dict] = field(default_factory=list)
    """Optional, one an object: ``{"class": id, "box": [x, y, width, height], "crowd": bool}`` in pixels."""
    superpixels: dict[str, dict] = field(default_factory=dict)
    """Algorithm -> ``{"count": segments, "fallback": true if a regular grid stands in for a collapsed map}``."""
    crop_of: str = ""
    """Photograph that the image was cropped from, if it gives several samples: no episode has two of the same."""

    def encode(self) -> bytes:
        """Return the bytes of ``KEY.json``."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "Meta":
        """Read ``KEY.json``. Raises ShardError if it is not in the form of :meth:`encode`."""
        try:
            fields = json.loads(raw)
            return cls(**{**fields, "classes": _integer_keys(fields["classes"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShardError(f"metadata cannot be read ({error!r})") from None


@dataclass(kw_only=True)
class SampleEntry:
    """A sample's row in the manifest."""

    key: str
    shard: int
    offset: int
    length: int
    height: int
    width: int
    classes: dict[int, int]
    crop_of: str = ""
    """As in :class:`Meta`."""


@dataclass(kw_only=True)
class ShardEntry:
    """A shard's row in the manifest."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(kw_only=True)
class Manifest:
    """``manifest.json``: all properties of a packed set that need no tar."""

    name: str
    classes: dict[int, str]
    """Class id -> name; empty for unlabelled images."""
    superpixels: dict[str, dict] = field(default_factory=dict)
    """Algorithm -> its parameters and the version of the library that computed it."""
    shards: list[ShardEntry] = field(default_factory=list)
    samples: list[SampleEntry] = field(default_factory=list)
    bad: list[dict] = field(default_factory=list)
    """Source files that were left out: ``{"source": path, "reason": sentence, "shard": its intended shard}``."""
    fingerprint: str = ""
    """Digest of all that decides the bytes: arguments, list of samples, library versions."""
    version: int = VERSION

    def content(self) -> dict:
        """Return the part for readers: equal for two packings of the same files from any folder."""
        return {name: value for name, value in asdict(self).items() if name not in ("bad", "fingerprint")}

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` into `folder`, whole or not at all."""
        write_whole(folder / MANIFEST, json.dumps(asdict(self), separators=(",", ":")).encode())

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of the packed set in `folder`.

        Raises ShardError if it is missing, is not JSON or has another version.
        """
        path = Path(folder) / MANIFEST
        try:
            raw = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ShardError(f"no {MANIFEST} in {folder}: pack the set first with launch/pack.py") from None
        except ValueError as error:
            raise ShardError(f"{path} is not JSON ({error}): pack the set again with launch/pack.py") from None
        version = raw.get("version") if isinstance(raw, dict) else None
        if version != VERSION:
            raise ShardError(f"{path} has format version {version}, this program reads {VERSION}: pack the set again")
        try:
            return cls(
                **{
                    **raw,
                    "classes": _integer_keys(raw["classes"]),
                    "shards": [ShardEntry(**row) for row in raw["shards"]],
                    "samples": [sample_entry(row) for row in raw["samples"]],
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShardError(f"{path} is not in the form of a manifest ({error!r}): pack the set again") from None


def sample_entry(row: dict) -> SampleEntry:
    """Convert a row of the manifest from JSON, whose object keys are strings."""
    return SampleEntry(**{**row, "classes": _integer_keys(row["classes"])})


def _integer_keys(table: dict) -> dict:
    return {int(key): value for key, value in table.items()}


def temporary_name(path: Path) -> Path:
    """Return the path under which `path` is written first; no two processes share it, even on different machines."""
    return path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the name under which to write a file, or a folder of files, that must appear at `path` whole or not at all.

    If the block ends without an error, what it wrote is synced to the disk and renamed to `path`, in place of an older
    one; a reader sees the older one or the new one. After an error nothing is left of it.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        if temporary.is_dir():
            for file in temporary.iterdir():
                sync(file)
            shutil.rmtree(path, ignore_errors=True)  # a folder takes no other's place
        sync(temporary)
        os.replace(temporary, path)
        with suppress(OSError):  # some file systems cannot sync a folder; the file is in place already
            sync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` as `atomic_write` does. Raises OSError if the disk does not take it."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def sync(path: Path) -> None:
    """Have what is written of a file, or the names in a folder, put on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
