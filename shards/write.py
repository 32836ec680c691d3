"""Packing of a source into shards: whole or not at all, restartable, the same bytes for any number of processes.

Every shard's list of samples is fixed before the first is read. Worker processes read, check and encode samples; this
process writes them in order to a temporary file, which gets its name once it is whole and on disk. A sidecar
``NAME-000000.json`` beside each finished shard holds its part of the manifest, so that a killed run continues
after its last finished shard. At the end the sidecars become ``manifest.json`` and are removed.
"""

import errno
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shards.encode import Packed, encode_item
from shards.format import (
    MANIFEST,
    VERSION,
    Manifest,
    ReadError,
    SampleEntry,
    ShardEntry,
    ShardError,
    atomic_write,
    sample_entry,
    write_whole,
)
from shards.lock import lock
from shards.sources import Item, Source
from shards.superpixels import parameters
from shards.workers import ordered_map

SAMPLES_PER_SHARD = 256
_SHUFFLE_SEED = 0


@dataclass
class Part:
    """One shard's part of the manifest, stored as its sidecar."""

    fingerprint: str
    shard: ShardEntry
    samples: list[SampleEntry]
    bad: list[dict]

    @classmethod
    def load(cls, path: Path) -> "Part":
        """Read a sidecar. Raises OSError, ValueError, KeyError or TypeError if there is none or it is damaged."""
        raw = json.loads(path.read_bytes())
        samples = [sample_entry(row) for row in raw["samples"]]
        return cls(raw["fingerprint"], ShardEntry(**raw["shard"]), samples, raw["bad"])


def pack(
    source: Source,
    folder: Path,
    *,
    superpixels: Sequence[str] = (),
    processes: int = 1,
    samples_per_shard: int = SAMPLES_PER_SHARD,
) -> Manifest:
    """Pack `source` into `folder` and return the manifest.

    Samples are shuffled once by a fixed seed, so that every shard mixes the classes, and divided into shards whose
    sizes differ by at most one and are at most `samples_per_shard`. Bad source files are left out and listed in the
    manifest. Shards that an earlier run with the same arguments finished are kept; their bad samples are tried again,
    and the shard of a repaired one is written again. superpixels: names of algorithms of shards.superpixels.

    Raises ShardError if the folder has a set made with other arguments, a disk cannot be read or is full, or there is
    nothing to pack.
    """
    if samples_per_shard < 1 or processes < 1:
        raise ShardError(f"samples per shard ({samples_per_shard}) and processes ({processes}) must be 1 or more")
    if not source.items:
        raise ShardError("nothing to pack: the list of samples is empty")
    repeated = [key for key, times in Counter(item.key for item in source.items).items() if times > 1]
    if repeated:
        raise ShardError(f"{len(repeated)} samples stand in the list more than once, {repeated[0]} for one")
    superpixels = sorted(set(superpixels))
    fingerprint = _fingerprint(source, superpixels, samples_per_shard)
    order = list(source.items)
    random.Random(_SHUFFLE_SEED).shuffle(order)
    count = -(-len(order) // samples_per_shard)
    bounds = [len(order) * index // count for index in range(count + 1)]
    shares = [order[start:end] for start, end in pairwise(bounds)]
    names = [f"{source.name}-{index:06d}.tar" for index in range(count)]
    encode = partial(encode_item, superpixels=superpixels)

    parts: dict[int, Part] = {}
    with _trouble(folder, lambda: f"{len(parts)} of {count} shards are finished and stay"), lock(folder):
        parts |= _finished(folder, names, fingerprint)
        for index in _repaired(parts, shares, encode, processes):
            del parts[index]
        missing = [index for index in range(count) if index not in parts]
        if not missing and (folder / MANIFEST).exists():
            return Manifest.load(folder)
        # The manifest lists shards that are about to be rewritten, so it becomes sidecars again.
        for part in parts.values():
            _write_sidecar(folder, part)
        (folder / MANIFEST).unlink(missing_ok=True)

        jobs = [item for index in missing for item in shares[index]]
        with _progress(len(order), len(order) - len(jobs)) as advance, ordered_map(encode, jobs, processes) as packed:
            for index in missing:
                samples = (advance(next(packed)) for _ in shares[index])
                parts[index] = _write_shard(folder / names[index], index, samples, fingerprint)

        ordered = [parts[index] for index in range(count)]
        manifest = Manifest(
            name=source.name,
            classes=source.classes,
            superpixels={algorithm: parameters(algorithm) for algorithm in superpixels},
            shards=[part.shard for part in ordered],
            samples=[row for part in ordered for row in part.samples],
            bad=[row for part in ordered for row in part.bad],
            fingerprint=fingerprint,
        )
        if not manifest.samples:
            raise ShardError(f"none of the {len(order)} samples can be read; the first: {manifest.bad[0]['reason']}")
        manifest.save(folder)
        for name in names:
            _sidecar(folder, name).unlink(missing_ok=True)
    return manifest


def _fingerprint(source: Source, superpixels: Sequence[str], samples_per_shard: int) -> str:
    """Return the digest of all that decides the shards' bytes, except the content of the source's files."""
    decisive = {
        "version": VERSION,
        "name": source.name,
        "classes": source.classes,
        "arguments": source.arguments,
        "superpixels": {algorithm: parameters(algorithm) for algorithm in superpixels},
        "samples_per_shard": samples_per_shard,
        "items": [(item.key, item.source) for item in source.items],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _sidecar(folder: Path, name: str) -> Path:
    return (folder / name).with_suffix(".json")


def _finished(folder: Path, names: Sequence[str], fingerprint: str) -> dict[int, Part]:
    """Return the shards that an earlier run finished, by index, from its manifest or from its sidecars."""
    parts: dict[int, Part] = {}
    if (folder / MANIFEST).exists():
        try:
            manifest = Manifest.load(folder)
        except ShardError:
            raise _made_otherwise(folder) from None
        if manifest.fingerprint != fingerprint:
            raise _made_otherwise(folder)
        parts = {index: Part(fingerprint, entry, [], []) for index, entry in enumerate(manifest.shards)}
        for row in manifest.samples:
            parts[row.shard].samples.append(row)
        for bad in manifest.bad:
            parts[bad["shard"]].bad.append(bad)
    else:
        for path in folder.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].json"):
            try:
                part = Part.load(path)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # of another program or incomplete: its shard is made again
            if part.fingerprint != fingerprint:
                raise _made_otherwise(folder)
            parts[names.index(part.shard.name)] = part
    return {
        index: part
        for index, part in parts.items()
        if (path := folder / part.shard.name).exists() and path.stat().st_size == part.shard.bytes
    }


def _repaired(
    parts: dict[int, Part], shares: Sequence[Sequence[Item]], encode: Callable[[Item], Packed], processes: int
) -> set[int]:
    """Try the bad samples of finished shards again and return the shards to write again.

    These are the shards in which a sample is good now or bad for another reason, and those without a good sample.
    """
    empty = {index for index, part in parts.items() if not part.samples}
    reasons = {(index, row["source"]): row["reason"] for index, part in parts.items() for row in part.bad}
    again = [
        (index, item) for index in parts.keys() - empty for item in shares[index] if (index, item.source) in reasons
    ]
    if again:
        print(f"packing: trying {len(again)} bad samples of an earlier run again", file=sys.stderr)
    with ordered_map(encode, [item for _, item in again], processes) as tried:
        return empty | {
            index
            for (index, item), sample in zip(again, tried, strict=True)
            if sample.reason != reasons[index, item.source]
        }


def _made_otherwise(folder: Path) -> ShardError:
    return ShardError(
        f"{folder} holds shards of other arguments, of another list of samples or of another library version: "
        "pack into another folder, or delete this one first"
    )


def _write_sidecar(folder: Path, part: Part) -> None:
    write_whole(_sidecar(folder, part.shard.name), json.dumps(asdict(part), separators=(",", ":")).encode())


def _write_shard(path: Path, index: int, packed: Iterator[Packed], fingerprint: str) -> Part:
    """Write one shard and its sidecar, each with `atomic_write`."""
    # webdataset imports torch, which worker processes do not need.
    from webdataset import TarWriter

    rows, bad = [], []
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            # Fixed owner, mode and time: the bytes depend on the samples alone.
            with TarWriter(file, encoder=False, user="fss", group="fss", mode=0o444, mtime=0) as writer:
                for sample in packed:
                    if sample.meta is None:
                        bad.append({"source": sample.source, "reason": sample.reason, "shard": index})
                        continue
                    offset = writer.tarstream.offset
                    writer.write({"__key__": sample.key, **sample.members})
                    rows.append(
                        SampleEntry(
                            key=sample.key,
                            shard=index,
                            offset=offset,
                            length=writer.tarstream.offset - offset,
                            height=sample.meta.height,
                            width=sample.meta.width,
                            classes=sample.meta.classes,
                            crop_of=sample.meta.crop_of,
                        )
                    )
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
    part = Part(fingerprint, ShardEntry(name=path.name, samples=len(rows), bytes=size, sha256=digest), rows, bad)
    _write_sidecar(path.parent, part)
    return part


@contextmanager
def _trouble(folder: Path, state: Callable[[], str]) -> Iterator[None]:
    """Turn errors inside into a ShardError with the reason, the `state` of the folder, and the remedy."""
    try:
        yield
    except ReadError as error:
        raise ShardError(
            f"{error}, which is a fault of the disk or the machine and not of the sample: {state()}; repair it and run "
            "the same command"
        ) from None
    except MemoryError:
        raise ShardError(f"no memory left: {state()}; run the same command with fewer --processes") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ShardError(f"no space left for {folder}: {state()}; make room and run the same command") from None
        raise ShardError(f"{error.filename or folder} cannot be written ({error.strerror}): {state()}") from None


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[Packed], Packed]]:
    """Show a bar on a terminal, else a line every tenth of the samples; yields a function that counts a sample."""
    console = Console(stderr=True)
    columns = TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)

        def advance(sample: Packed) -> Packed:
            nonlocal done
            done += 1
            bar.advance(task)
            if bar.disable and done * 10 // total > (done - 1) * 10 // total:
                print(f"packing: {done} of {total} samples", file=sys.stderr)
            return sample

        yield advance
