"""The measurements as a Markdown document."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gpu_parts.part import NONE, Values

LEFT_OUT = "left out: no time"


@dataclass
class Section:
    """The table of a part, filled row by row."""

    title: str
    note: str
    columns: list[str]
    """Those of the labels first."""
    rows: list[tuple[str, ...]]
    """The labels of each row."""
    values: dict[int, Values] = field(default_factory=dict)
    """Number of a row -> its other cells."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Number of a row -> the reason why it has none."""

    @property
    def open(self) -> list[int]:
        """Numbers of the rows of which nothing is known yet."""
        return [index for index in range(len(self.rows)) if index not in self.values and index not in self.reasons]

    def markdown(self) -> str:
        """Title, table and note; the reason of a row without values stands in its first free cell."""
        body = []
        for index, labels in enumerate(self.rows):
            free = self.columns[len(labels) :]
            if index in self.values:
                cells = [self.values[index].get(column, NONE) for column in free]
            else:
                cells = [self.reasons.get(index, LEFT_OUT), *[""] * (len(free) - 1)]
            body.append([*labels, *cells])
        return f"## {self.title}\n\n{table(self.columns, body)}\n\n{self.note}\n"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table whose columns are aligned in the source, too."""
    lines = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]])


def heading(facts: Mapping[str, str]) -> str:
    """The title and the table of the machine."""
    return f"# GPU measurements\n\n{table(('', ''), facts.items())}\n"
