"""A table, and its forms: Markdown, CSV, LaTeX, and one for the console."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table

NO_VALUE = "\N{EM DASH}"
"""A cell without a value."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of words and numbers; the first column names the row."""

    title: str
    header: Sequence[str]
    """One word a column; empty for a list of labels and values."""
    rows: Sequence[Sequence[str]]
    note: str = ""
    """A sentence below it."""
    folded: bool = False
    """True if the page shows it only on demand, because it is long."""


def markdown_table(table: Table) -> str:
    """The table as Markdown, with its title and note."""
    header = table.header or ("", "")
    lines = [header, ["---"] * len(header), *table.rows]
    rows = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([f"## {table.title}", "", *rows, *(["", table.note] if table.note else []), ""])


def csv_table(table: Table) -> str:
    """The title, the header and the rows as CSV."""
    file = io.StringIO()
    csv.writer(file).writerows([(table.title,), table.header, *table.rows])
    return file.getvalue()


def latex_table(table: Table) -> str:
    """The table as a LaTeX tabular with the rules of booktabs."""

    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("±", r"$\pm$").replace(NO_VALUE, "---").replace("_", r"\_") for cell in cells)
        return " & ".join(escaped) + r" \\"

    columns = "ll" + "r" * (len(table.header) - 2)
    lines = [f"% {table.title}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(table.header), r"\midrule"]
    lines += [*map(line, table.rows), r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def on_console(table: Table) -> "rich.table.Table":
    """The table in the form that rich prints."""
    import rich.box
    import rich.table

    printed = rich.table.Table(
        title=table.title,
        title_justify="left",
        caption=table.note,
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for index, word in enumerate(table.header):
        printed.add_column(word, justify="right" if index else "left", no_wrap=index > 0)  # only words may wrap
    for row in table.rows:
        printed.add_row(*row)
    return printed
