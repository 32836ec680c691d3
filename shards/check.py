"""Verify a packed set against its manifest: `python -m shards.check FOLDER`."""

import argparse
import hashlib
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from shards.codec import decode_image, decode_labels, decode_mask, split_members
from shards.format import IMAGE_SUFFIXES, SUPERPIXEL_STRIDE, Manifest, Meta, SampleEntry, ShardEntry, ShardError

REMEDY = "delete the damaged shards and run the same launch/pack.py command again: it makes only what is missing"


def check(folder: Path, processes: int = 1) -> list[str]:
    """Read everything in `folder` and return the faults, one sentence each with its place; empty if there is none.

    The check of a shard covers size and SHA-256. The check of a sample covers that its bytes lie at the offset in the
    manifest, that image, masks and label maps decode and have the right size, that classes and areas match, and that
    the superpixel maps in the manifest are present. Raises ShardError if there is no manifest.
    """
    manifest = Manifest.load(folder)
    rows = {shard: list(group) for shard, group in groupby(manifest.samples, key=lambda row: row.shard)}
    jobs = [
        _Job(Path(folder, entry.name), entry, rows.get(index, []), set(manifest.classes), list(manifest.superpixels))
        for index, entry in enumerate(manifest.shards)
    ]
    times = Counter(row.key for row in manifest.samples)
    problems = [f"manifest: key {key} stands {count} times" for key, count in times.items() if count > 1]
    if processes == 1:
        faults = list(map(_check_shard, jobs))
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            faults = list(pool.map(_check_shard, jobs))
    return problems + [problem for shard in faults for problem in shard]


@dataclass(frozen=True)
class _Job:
    """Input of the check of one shard."""

    path: Path
    entry: ShardEntry
    rows: list[SampleEntry]
    classes: set[int]
    superpixels: list[str]


def _check_shard(job: _Job) -> list[str]:
    name, entry = job.path.name, job.entry
    try:
        file = open(job.path, "rb")
    except OSError as error:
        return [f"{name}: cannot be read ({error.strerror}); {len(job.rows)} samples are lost"]
    problems = []
    with file:
        size = job.path.stat().st_size
        if size != entry.bytes:
            lost = sum(row.offset + row.length > size for row in job.rows)
            problems.append(f"{name}: {size} bytes, the manifest has {entry.bytes}; {lost} samples are lost")
        elif hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            problems.append(f"{name}: content differs from the manifest's SHA-256")
        if len(job.rows) != entry.samples:
            problems.append(f"{name}: the manifest counts {entry.samples} samples and lists {len(job.rows)}")
        for row in job.rows:
            if row.offset + row.length <= size:
                file.seek(row.offset)
                raw = file.read(row.length)
                problems += [f"{name}: sample {row.key}: {problem}" for problem in _check_sample(row, raw, job)]
    return problems


def _check_sample(row: SampleEntry, raw: bytes, job: _Job) -> Iterator[str]:
    try:
        members = split_members(raw)
    except ShardError as error:
        yield str(error)
        return
    if not raw.startswith(f"{row.key}.".encode()):
        yield "another sample lies at its offset"
    images = [suffix for suffix in IMAGE_SUFFIXES if suffix in members]
    if len(images) != 1 or "json" not in members:
        yield f"needs one image and a json, has {', '.join(sorted(members))}"
        return
    try:
        meta = Meta.decode(members["json"])
        size = decode_image(members[images[0]]).shape[:2]
    except ShardError as error:
        yield str(error)
        return
    if not size == (meta.height, meta.width) == (row.height, row.width):
        yield f"image is {size}, its metadata have {(meta.height, meta.width)}, the manifest {(row.height, row.width)}"
    if meta.crop_of != row.crop_of:
        yield f"its metadata call it a crop of {meta.crop_of!r}, the manifest of {row.crop_of!r}"
    yield from _check_masks(row, meta, members, size, job.classes)
    yield from _check_superpixels(meta, members, size, job.superpixels)


def _check_masks(row: SampleEntry, meta: Meta, members: dict, size: tuple, classes: set[int]) -> Iterator[str]:
    areas = {}
    for extension, data in members.items():
        kind, _, rest = extension.partition(".")
        if kind not in ("mask", "ignore", "labels"):
            continue
        try:
            array = decode_labels(data) if kind == "labels" else decode_mask(data)
        except ShardError as error:
            yield f"{extension} {error}"
            continue
        if array.shape != size:
            yield f"{extension} is {array.shape}, the image {size}"
        if kind == "mask":
            areas[int(rest.removesuffix(".png"))] = int(np.count_nonzero(array))
    if not areas == meta.classes == row.classes:
        yield f"masks have areas {areas}, the metadata have {meta.classes}, the manifest {row.classes}"
    if sorted(meta.paint) != sorted(areas):
        yield f"paint order {meta.paint} is not an order of the classes {sorted(areas)}"
    if not areas.keys() <= classes:
        yield f"classes {sorted(areas.keys() - classes)} are not in the manifest"


def _check_superpixels(meta: Meta, members: dict, size: tuple, superpixels: Sequence[str]) -> Iterator[str]:
    half = tuple(-(-side // SUPERPIXEL_STRIDE) for side in size)
    for algorithm in superpixels:
        extension = f"{algorithm}.png"
        if extension not in members or algorithm not in meta.superpixels:
            yield f"has no {algorithm} superpixels"
            continue
        try:
            labels = decode_labels(members[extension])
        except ShardError as error:
            yield f"{extension} {error}"
            continue
        count = meta.superpixels[algorithm]["count"]
        if labels.shape != half:
            yield f"{extension} is {labels.shape}, half the image is {half}"
        elif not np.array_equal(np.unique(labels), np.arange(count)):
            yield f"{extension} does not have the ids 0..{count - 1}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the faults of a packed set. Returns 0 if there is none, 1 if there are some, 2 if there is no set."""
    parser = argparse.ArgumentParser(prog="python -m shards.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=1, help="shards checked at the same time (default: 1)")
    arguments = parser.parse_args(argv)
    try:
        problems = check(arguments.folder, max(1, arguments.processes))
    except ShardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    manifest = Manifest.load(arguments.folder)
    bad = f"{len(manifest.bad)} samples are recorded as bad and were left out"
    if problems:
        print(f"{bad}\n{len(problems)} problems; {REMEDY}")
        return 1
    print(f"{arguments.folder}: {len(manifest.samples)} samples in {len(manifest.shards)} shards, all is well; {bad}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
