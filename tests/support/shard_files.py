"""Access to packed sets without the reader under test."""

from pathlib import Path

from shards.codec import split_members
from shards.format import Manifest


def files(folder: Path) -> dict[str, bytes]:
    """Return all visible files of a packed set."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}


def members(folder: Path, manifest: Manifest, key: str) -> dict[str, bytes]:
    """Read one sample by the manifest's offset."""
    (row,) = (row for row in manifest.samples if row.key == key)
    with open(folder / manifest.shards[row.shard].name, "rb") as file:
        file.seek(row.offset)
        return split_members(file.read(row.length))
