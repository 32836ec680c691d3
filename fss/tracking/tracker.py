"""The contract of a tracker: a service or a set of files that shows the logged values of runs."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["pretrain", "base", "meta", "evaluate"]
WandbMode = Literal["auto", "online", "offline", "off"]
ArtifactMode = Literal["none", "reference", "upload"]
Row = Mapping[str, float | str | np.ndarray | None]
"""A row of a table; arrays are pictures, uint8 RGB [H, W, 3]."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Facts about a run that are known before its first value."""

    kind: Kind
    config: Mapping[str, Any]
    """The job, nested."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    chance_levels: Mapping[str, float] = field(default_factory=dict)
    """Key of a logged value -> the value that guessing gives."""


class Tracker(abc.ABC):
    """Receives the values of a run. Steps of successive calls ascend; several calls may have the same step."""

    @abc.abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values by key."""

    @abc.abstractmethod
    def distribution(self, step: int, name: str, values: np.ndarray) -> None:
        """Record values [n] as a histogram."""

    @abc.abstractmethod
    def picture(self, step: int, name: str, path: Path) -> None:
        """Record a PNG."""

    @abc.abstractmethod
    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Record rows that all have the same columns."""

    @abc.abstractmethod
    def export(self, path: Path) -> None:
        """Record a file that the run leaves for others: weights, or results."""

    @abc.abstractmethod
    def close(self, *, failed: bool) -> None:
        """End the run."""


class SentLog:
    """A file that lists what a tracker has received, so that a resumed run, which repeats steps, sends none twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = set(path.read_text().splitlines()) if path.exists() else set()

    def contains(self, step: int, name: str) -> bool:
        """Return whether `name` was sent at `step`."""
        return f"{step} {name}" in self._entries

    def add(self, step: int, name: str) -> None:
        """Record that `name` was sent at `step`."""
        self._entries.add(f"{step} {name}")
        with open(self._path, "a") as file:
            file.write(f"{step} {name}\n")
