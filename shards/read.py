"""Reading of a packed set: any sample by one ``pread``, and the order of the samples in training.

Nothing is divided by shard. `EpochOrder` numbers the samples of all epochs in one endless sequence that every process
can compute by itself; a rank takes the positions that are its share of an optimizer step. So all ranks make the same
number of steps for any shard sizes, every sample occurs exactly once an epoch, and a run continues at any step, on any
number of ranks, with nothing saved but the step. Disk access stays sequential: an epoch reads a few shards at a time,
and the first process that opens one asks the kernel to read all of it ahead.
"""

import bisect
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from shards.codec import split_members
from shards.format import MANIFEST, Manifest, ShardEntry, ShardError, atomic_write, write_whole
from shards.lock import locked

OPEN_FILES = 64  # descriptors that a process keeps open; an epoch's window is 16 shards by default
SHARD_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)  # a manifest may be remote: neither paths nor shell syntax
PIECE = 1 << 20  # bytes read at once while fetching

# Purposes of random streams; the first word of their seeds, so that no two purposes share a stream.
SHARD_ORDER, SAMPLE_ORDER, REPLACEMENT = 1, 2, 3


class LostShardError(ShardError):
    """A whole shard is not available: a training without it would be one on another data set."""


@contextmanager
def sample_context(name: str) -> Iterator[None]:
    """Put `name`, the key of a sample or the name of a member, in front of every error raised inside.

    Raises ShardError with the name in front. A LostShardError passes unchanged: it names the shard, and no sample is at
    fault.
    """
    try:
        yield
    except LostShardError:
        raise
    except ShardError as error:
        raise ShardError(f"{name}: {error}") from None


class _OpenFile:
    """A file that is closed after its last reader."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardSet:
    """A packed set of `len(self)` samples, read by index or key, by any number of threads. Cheap to pickle.

    `folder` is a folder, or the prefix of a remote set: ``https://host/set``, ``file:///mnt/set``, or a command with a
    placeholder for the file's name, ``pipe:aws s3 cp s3://bucket/set/{} -``. A remote set needs `cache`, a local folder
    that all processes of a machine may share: each shard is fetched once, at the first read of a sample in it, checked
    against its hash, and read from there.

    Raises ShardError if the manifest is missing or contradicts itself, or a local shard is missing or truncated.
    """

    def __init__(self, folder: str | Path, cache: str | Path | None = None):
        self.remote = str(folder) if re.match(r"[A-Za-z][\w+.-]*://|pipe:|file:", str(folder)) else None
        if self.remote is None:
            self.folder = Path(folder)
        elif cache is None:
            raise ShardError(f"{folder} is remote: name a local folder for its shards with --data.cache")
        else:
            self.cache = Path(cache)
            self.folder = self.cache / hashlib.sha256(self.remote.encode()).hexdigest()[:16]
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / MANIFEST, b"".join(self._pieces(MANIFEST)))
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()  # shard -> its file, least recently used first
        self._lock = threading.Lock()  # of `_open`
        self.shards = self.manifest.shards
        rows = self.manifest.samples
        self.keys = [row.key for row in rows]
        self._shard = np.array([row.shard for row in rows], np.int64)
        self._offset = np.array([row.offset for row in rows], np.int64)
        self._length = np.array([row.length for row in rows], np.int64)
        self._check()

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest; processes that only read samples never load it again."""
        return Manifest.load(self.folder)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {key: index for index, key in enumerate(self.keys)}

    @property
    def counts(self) -> list[int]:
        """Samples in each shard."""
        return [shard.samples for shard in self.shards]

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict:
        """Return the state for another process: no files, and of the manifest only the places of the samples."""
        return {k: v for k, v in self.__dict__.items() if k not in ("manifest", "_index", "_open", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | {"_open": OrderedDict(), "_lock": threading.Lock()}

    def find(self, key: str) -> int:
        """Return the index of sample `key`. Raises ShardError if there is none."""
        if key not in self._index:
            raise ShardError(f"no sample {key!r} in {self.remote or self.folder}, which has {len(self)} samples")
        return self._index[key]

    def read(self, index: int) -> dict[str, bytes]:
        """Return the undecoded members of sample `index` by extension ('jpg', 'json', 'mask.3.png', 'slic.png').

        Raises ShardError if the sample is damaged, LostShardError if its whole shard is not available.
        """
        shard, offset, length = int(self._shard[index]), int(self._offset[index]), int(self._length[index])
        name = self.shards[shard].name
        file = self._file(shard)  # stays open as long as this variable exists
        try:
            raw = os.pread(file.descriptor, length, offset)
        except OSError as error:
            raise LostShardError(
                f"{name} cannot be read at sample {self.keys[index]} ({error.strerror}): is the disk still there?"
            ) from None
        if len(raw) != length:
            raise ShardError(f"{name} ends inside sample {self.keys[index]}")
        return split_members(raw)

    def _check(self) -> None:
        """Raise ShardError unless the manifest is consistent and local shards have the size in it."""
        path, remedy = self.folder / MANIFEST, "pack the set again"
        if not self.keys:
            raise ShardError(f"{path} lists no samples: {remedy}")
        for shard in self.shards:
            if not SHARD_NAME.fullmatch(shard.name):
                raise ShardError(f"{path}: {shard.name!r} is not a name for a shard: {remedy}")
        if not np.array_equal(self._shard, np.repeat(np.arange(len(self.shards)), self.counts)):
            raise ShardError(f"{path}: the samples are not listed shard by shard in the numbers it states: {remedy}")
        ends = np.array([shard.bytes for shard in self.shards])[self._shard]
        if (outside := (self._offset < 0) | (self._length <= 0) | (self._offset + self._length > ends)).any():
            raise ShardError(f"{path}: {self.keys[int(outside.argmax())]} lies outside its shard: {remedy}")
        for shard in self.shards if self.remote is None else ():
            tar = self.folder / shard.name
            size = tar.stat().st_size if tar.is_file() else None
            if size != shard.bytes:
                fault = "is missing" if size is None else f"has {size} bytes"
                raise ShardError(f"{tar} {fault}, the manifest has {shard.bytes} bytes: copy it again, or {remedy}")

    def _file(self, shard: int) -> _OpenFile:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        path = self.folder / self.shards[shard].name if self.remote is None else self._fetch(self.shards[shard])
        try:
            file = _OpenFile(path)
        except OSError as error:
            raise LostShardError(f"{path} cannot be opened ({error.strerror}): is the disk still there?") from None
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        with self._lock:
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)
            self._open[shard] = file
        return file

    def _fetch(self, shard: ShardEntry) -> Path:
        """Return the local copy of a remote shard, named by its hash, so that an old copy of a shard is never used."""
        path = self.cache / f"{shard.sha256}.tar"
        if path.exists():
            return path
        with locked(path.with_suffix(".lock"), f"fetches {shard.name}"):  # all workers of a machine need it at once
            if path.exists():
                return path
            digest = hashlib.sha256()
            with atomic_write(path) as temporary:
                with open(temporary, "wb") as file:
                    for piece in self._pieces(shard.name):
                        digest.update(piece)
                        file.write(piece)
                if digest.hexdigest() != shard.sha256:
                    raise LostShardError(
                        f"{self._url(shard.name)} gave {temporary.stat().st_size} bytes that do not have the hash of "
                        f"the manifest ({shard.bytes} bytes): upload the shard and the manifest of the same packing "
                        "again"
                    )
        return path

    def _url(self, name: str) -> str:
        """Return the address of a file of a remote set."""
        remote = self.remote or ""
        return remote.replace("{}", name) if "{}" in remote else f"{remote.rstrip('/')}/{name}"

    def _pieces(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a remote file, piece by piece. Raises LostShardError if it cannot be read."""
        import webdataset  # takes a second, and only remote sets need it

        url = self._url(name)
        try:
            with webdataset.gopen(url, "rb") as stream:
                while piece := stream.read(PIECE):
                    yield piece
        except (OSError, ValueError) as error:
            raise LostShardError(
                f"{url} cannot be read ({error}): check the address; for other stores give a command, as in "
                "'pipe:aws s3 cp s3://bucket/set/{} -'"
            ) from None


class EpochOrder:
    """The endless sequence of samples of a training: a pure function of the shard sizes and `seed`.

    Epoch e permutes all shards, takes them in windows of `window` shards, and permutes the samples inside each window.
    There is no gap between epochs: position g is sample g % N of epoch g // N. With a global batch of G, optimizer step
    t takes positions [t G, (t + 1) G).
    """

    def __init__(self, counts: Sequence[int], seed: int, window: int = 16):
        self.counts = np.asarray(counts, np.int64)
        self.first = np.cumsum(self.counts) - self.counts  # [shards], index of each shard's first sample
        self.samples = int(self.counts.sum())
        self.seed = seed
        self.window = window
        # The epoch and the window of the last call, because consecutive positions share them.
        self._epoch: tuple[int, list[int], np.ndarray] | None = None
        self._inside: tuple[int, int, np.ndarray] | None = None

    def positions(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return (epoch, sample index) at each position of [start, stop)."""
        samples_met: list[tuple[int, int]] = []
        while start < stop:
            epoch, place = divmod(start, self.samples)
            begins, order = self._windows(epoch)
            number = bisect.bisect_right(begins, place) - 1
            samples = self._permuted(epoch, number, order)
            taken = samples[place - begins[number] :][: stop - start].tolist()
            samples_met += [(epoch, index) for index in taken]
            start += len(taken)
        return samples_met

    def replacement(self, position: tuple[int, int], attempt: int) -> tuple[int, int]:
        """Return the sample that replaces an unreadable one: another of the same epoch, the same in every process."""
        epoch, index = position
        if self.samples == 1:
            return position
        draw = np.random.default_rng([REPLACEMENT, self.seed, epoch, index, attempt])
        return epoch, (index + 1 + int(draw.integers(self.samples - 1))) % self.samples

    def _windows(self, epoch: int) -> tuple[list[int], np.ndarray]:
        """Return the first position of each window of the epoch, and the order of the shards [shards]."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([SHARD_ORDER, self.seed, epoch]).permutation(len(self.counts))
            ends = np.cumsum(self.counts[order])
            begins = (ends - self.counts[order])[:: self.window]
            self._epoch = epoch, begins.tolist(), order
        _, starts, order = self._epoch
        return starts, order

    def _permuted(self, epoch: int, number: int, order: np.ndarray) -> np.ndarray:
        """Return the samples of one window [samples] in their order."""
        if self._inside is None or self._inside[:2] != (epoch, number):
            shards = order[number * self.window : (number + 1) * self.window]
            samples = np.concatenate([np.arange(self.counts[s]) + self.first[s] for s in shards])
            draw = np.random.default_rng([SAMPLE_ORDER, self.seed, epoch, number])
            self._inside = epoch, number, draw.permutation(samples)
        return self._inside[2]
