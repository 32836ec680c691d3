"""The record of an evaluation: what became of every episode, kept so that no finished one is ever done again."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from fss.compat import EPISODE, current_fields

SYNC_SECONDS = 5  # what a machine that loses its power may lose; a kill loses nothing but the episode at hand

Counts = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class EpisodeResult:
    """What became of one episode."""

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
    """What the method found unusual about its prediction."""
    encoded: int = field(default=0, compare=False)
    """Images that went through the encoder for this episode; the others were still known."""
    seconds: float = field(default=0.0, compare=False)
    """Wall time of this episode on its rank."""

    @property
    def iou(self) -> float:
        """Of the foreground, in this episode alone."""
        intersection, union = self.counts[1]
        return intersection / max(union, 1)


class EpisodeRecord:
    """The files of finished episodes in `folder`, one a rank; and the word by which ranks that do not meet stop.

    Ranks share the folder. Any number of ranks may go on with what any other number wrote.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.path = folder / f"rank_{rank:05d}.jsonl"
        self._halt = folder / "halt"
        self._file: IO | None = None
        self._synced = 0.0

    def begin(self) -> dict[tuple[int, int], EpisodeResult]:
        """What is finished, by (seed, number); rank 0 asks before any rank goes on.

        A line that a kill cut short is passed over: its episode is done again.
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
        """Write a finished episode down before the next one begins."""
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
        """Have every rank stop before its next episode."""
        self._halt.touch()

    @property
    def halted(self) -> bool:
        """Has any rank called for a halt?"""
        return self._halt.exists()

    def close(self) -> None:
        """Everything written is on the disk."""
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
