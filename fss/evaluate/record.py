"""The record of an evaluation: the result of every finished episode, so that a resumed run evaluates none again."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from fss.compat import EPISODE, current_fields

SYNC_SECONDS = 5  # a power failure may lose the results of so many seconds; a kill loses only the current episode

Counts = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class EpisodeResult:
    """The result of one episode."""

    seed: int
    number: int
    """The episode's number under its seed."""
    class_id: int
    query: str
    """Key of the query image."""
    supports: tuple[str, ...]
    counts: Counts
    """((background intersection, union), (foreground intersection, union)) in pixels: fss.evaluate.metrics."""
    flags: tuple[str, ...] = ()
    """What was unusual about the prediction, a few words each."""
    encoded: int = field(default=0, compare=False)
    """Images that went through the encoder for this episode; the others were cached."""
    seconds: float = field(default=0.0, compare=False)
    """Wall time of this episode on its rank."""

    @property
    def iou(self) -> float:
        """Intersection over union of the foreground in this episode."""
        intersection, union = self.counts[1]
        return intersection / max(union, 1)


class EpisodeRecord:
    """The files of finished episodes in `folder`, one a rank, and a file that tells ranks without a collective to stop.

    All ranks share the folder. Any number of ranks may continue the record of any other number.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.path = folder / f"rank_{rank:05d}.jsonl"
        self._halt = folder / "halt"
        self._file: IO | None = None
        self._synced = 0.0

    def begin(self) -> dict[tuple[int, int], EpisodeResult]:
        """Read the finished episodes, by (seed, number), and withdraw a halt. Called on rank 0 before the others start.

        A line that a kill cut short is skipped, so its episode is evaluated again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._halt.unlink(missing_ok=True)
        results = {}
        for path in sorted(self.folder.glob("rank_*.jsonl")):
            for line in path.read_text(errors="replace").splitlines():
                if (result := _parse(line)) is not None:
                    results[result.seed, result.number] = result
        return results

    def append(self, result: EpisodeResult) -> None:
        """Write a finished episode to the file of this rank."""
        if self._file is None:
            self._file = open(self.path, "a+b")
            if self._file.tell() and not _ends_line(self._file):
                self._file.write(b"\n")
        self._file.write(json.dumps(asdict(result), separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def halt(self) -> None:
        """Let every rank stop before its next episode."""
        self._halt.touch()

    @property
    def halted(self) -> bool:
        """True if any rank has called `halt`."""
        return self._halt.exists()

    def close(self) -> None:
        """Sync the file to the disk and close it."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _ends_line(file: IO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parse(line: str) -> EpisodeResult | None:
    try:
        row = current_fields(json.loads(line), EPISODE)
        background, foreground = row["counts"]
        lists = {name: tuple(row[name]) for name in ("supports", "flags")}
        return EpisodeResult(**row | lists | {"counts": (tuple(background), tuple(foreground))})
    except (ValueError, TypeError, KeyError):
        return None
