"""What a viewer of runs takes."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["pretrain", "base", "meta", "evaluate"]
Row = Mapping[str, float | str | np.ndarray | None]
"""A row of a table; arrays are pictures, uint8 RGB [H, W, 3]."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a viewer is told of a run before its first value."""

    kind: Kind
    config: Mapping[str, Any]
    """The job, nested."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    """Name of a logged value -> what guessing gives."""


class Tracker(abc.ABC):
    """Takes what a run tells. Calls come with ascending steps, several for one step."""

    @abc.abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values by name."""

    @abc.abstractmethod
    def distribution(self, step: int, name: str, values: np.ndarray) -> None:
        """Any number of values, to be seen as a histogram."""

    @abc.abstractmethod
    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG."""

    @abc.abstractmethod
    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Rows with the same columns."""

    @abc.abstractmethod
    def export(self, path: Path) -> None:
        """A file that the run leaves for others: weights, or results."""

    @abc.abstractmethod
    def close(self, *, failed: bool) -> None:
        """The run is over."""


class SentLog:
    """What a viewer has got, in a file: a run that goes on from a checkpoint repeats steps, but shows none twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = set(path.read_text().splitlines()) if path.exists() else set()

    def holds(self, step: int, name: str) -> bool:
        return f"{step} {name}" in self._entries

    def add(self, step: int, name: str) -> None:
        self._entries.add(f"{step} {name}")
        with open(self._path, "a") as file:
            file.write(f"{step} {name}\n")
