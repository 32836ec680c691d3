"""A plain folder of unlabelled images, for pretraining."""

import os
from dataclasses import dataclass
from pathlib import Path

from shards.format import ShardError
from shards.sources import Sample, Source, read_file, require_folder, unique_keys

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ImageItem:
    """An image file without labels."""

    key: str
    source: str
    image: Path

    def read(self) -> Sample:
        return Sample(image=read_file(self.image))


def folder(root: Path) -> Source:
    """Every JPEG and PNG below `root`, in sorted order; keys are the paths below `root` with '_' for '/'."""
    root = require_folder(root, "--root is the folder that holds the images")
    paths = sorted(
        Path(parent, name).relative_to(root)
        for parent, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    if not paths:
        raise ShardError(f"no {', '.join(SUFFIXES)} below {root}")
    keys = unique_keys([str(path.with_suffix("")) for path in paths], [str(path) for path in paths])
    return Source(
        name="images",
        classes={},
        items=[ImageItem(key, str(path), root / path) for key, path in zip(keys, paths, strict=True)],
        arguments={"root": str(root)},
    )
