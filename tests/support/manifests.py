"""Manifests without shards, and packed sets with the file names of a published episode list."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from shards.format import Manifest, SampleEntry
from shards.read import ShardSet
from shards.sources import Sample, Source, unique_keys
from shards.write import pack

SIDE = 32  # pixels of a made image
AREA = 5000  # pixels of a class, if a test needs no particular value


def manifest(classes_of: Sequence[dict[int, int] | set[int]], names: dict[int, str] | None = None) -> Manifest:
    """Make a manifest: sample i has key 'sNNNN' and classes_of[i], class id -> area or ids for AREA pixels."""
    samples = [
        SampleEntry(
            key=f"s{index:04d}",
            shard=0,
            offset=0,
            length=1,
            height=100,
            width=100,
            classes=classes if isinstance(classes, dict) else dict.fromkeys(sorted(classes), AREA),
        )
        for index, classes in enumerate(classes_of)
    ]
    ids = sorted({class_id for sample in samples for class_id in sample.classes})
    return Manifest(name="made", classes=names or {i: f"class {i}" for i in ids}, samples=samples)


@dataclass(frozen=True)
class Listed:
    """`Item`: grey noise with a coloured rectangle a class, which may be covered in part by another."""

    key: str
    source: str
    class_ids: tuple[int, ...]

    def read(self) -> Sample:
        rng = np.random.default_rng(list(self.source.encode()))
        image = rng.integers(100, 150, (SIDE, SIDE, 3), dtype=np.uint8)
        masks = {}
        for class_id in self.class_ids:
            top, left = rng.integers(0, SIDE // 2, 2)
            masks[class_id] = np.zeros((SIDE, SIDE), bool)
            masks[class_id][top : top + SIDE // 2, left : left + SIDE // 2] = True
            image[masks[class_id]] = np.random.default_rng(class_id).integers(0, 256, 3)
        return Sample(image=cv2.imencode(".png", image)[1].tobytes(), masks=masks, paint=list(self.class_ids))


def pack_listed(published: Path, folder: Path, classes: dict[int, str], rows: int) -> tuple[ShardSet, Path]:
    """A set with the files of the first rows of a published list, keyed as their readers do; and a list of those rows.

    Classes of rows are those of their folder where that is a class's name, else the row's number + 1.
    """
    lines = gzip.decompress(published.read_bytes()).decode().splitlines()[:rows]
    ids = {name: class_id for class_id, name in classes.items()}
    held: dict[str, set[int]] = {}
    for number, query, *supports in (line.split("\t") for line in lines):
        parent = query.rpartition("/")[0]
        for name in (query, *supports):
            source = name if "/" in name or not parent else f"{parent}/{name}"
            held.setdefault(source, set()).add(ids.get(parent, int(number) + 1))
    names = [source.replace("/", "_") if source.split("/")[0] in ids else Path(source).name for source in held]
    keys = unique_keys([name.removesuffix(".jpg") for name in names], list(held))
    items = [Listed(key, source, tuple(sorted(found))) for key, (source, found) in zip(keys, held.items(), strict=True)]
    pack(Source(name="listed", classes=classes, items=items), folder, superpixels=(), samples_per_shard=50)
    short = folder / "episodes.tsv"
    short.write_text("".join(line + "\n" for line in lines))
    return ShardSet(folder), short
