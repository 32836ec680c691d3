"""A part of the measurements: a table whose rows are measured one by one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NONE = "-"
"""A value that the device does not have, such as kernels on a CPU."""
UNKNOWN = "unknown"

Values = Mapping[str, str]
"""Column -> cell of a row; a column that is missing is `NONE`."""


@dataclass(frozen=True)
class Settings:
    """What is measured on."""

    device: str
    """cuda or cpu."""
    small: bool
    """Tiny networks and few steps: to see that everything runs."""


@dataclass(frozen=True)
class Row:
    """labels: its first cells. measure: gives the others. Raises Skipped if there is nothing to measure here."""

    labels: tuple[str, ...]
    measure: Callable[[], Values]


@dataclass(frozen=True)
class Part:
    """note: what the numbers mean. rows: in the order in which they are measured, what matters most first."""

    title: str
    note: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Callable[[Settings], list[Row]]


class Skipped(Exception):
    """This machine cannot give the row."""


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, whole numbers in full; `NONE` for None."""
    if value is None:
        return NONE
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """A share in per cent; `NONE` for None."""
    return NONE if share is None else f"{share:.1%}"
