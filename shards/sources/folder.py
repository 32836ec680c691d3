"""A plain folder of unlabelled images, for pretraining."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.format import ReadError, ShardError
from shards.sources import Sample, Source, read_file, require_folder, unique_keys

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ImageItem:
    """`Item`: an image file without labels."""

    key: str
    source: str
    image: Path

    def read(self) -> Sample:
        return Sample(image=read_file(self.image))


def folder(root: Path) -> Source:
    """Return every JPEG and PNG below `root`, in sorted order; keys are the paths below `root` with '_' for '/'.

    Raises ShardError if there is none, ReadError if a folder cannot be listed.
    """
    root = require_folder(root, "--root is the folder that holds the images")
    paths = files_below(root, SUFFIXES)
    if not paths:
        raise ShardError(f"no {', '.join(SUFFIXES)} below {root}")
    keys = unique_keys([str(path.with_suffix("")) for path in paths], [str(path) for path in paths])
    return Source(
        name="images",
        classes={},
        items=[ImageItem(key, str(path), root / path) for key, path in zip(keys, paths, strict=True)],
        arguments={"root": str(root)},
    )


def files_below(root: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the sorted paths below `root` of files with these `endings`, in lower or upper case.

    Names that begin with a dot are skipped. Links to folders are followed last: a folder that is reached twice counts
    once, by its own path. Raises ReadError if a folder cannot be listed.
    """
    return sorted(
        Path(parent, name).relative_to(root)
        for parent, names in _folders(root)
        for name in names
        if name.lower().endswith(endings) and not name.startswith(".")
    )


def _folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below `root`, itself included, with the names of its files."""
    waiting, seen = deque([str(root)]), set()
    while waiting:
        for parent, folders, names in os.walk(waiting.popleft(), onerror=_unlisted):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting.extend(path for name in folders if os.path.islink(path := os.path.join(parent, name)))
            yield parent, names


def _unlisted(error: OSError) -> None:
    raise ReadError(f"{error.filename} cannot be listed ({error.strerror})")
