"""A tracker that writes TensorBoard's files. Imported only if it is switched on: the package is an extra."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fss.tracking.catalogue import PAGES
from fss.tracking.tracker import Kind, Row, RunInfo, Tracker


class TensorBoard(Tracker):
    """Writes one file a start into RUN/tensorboard; TensorBoard shows them as one run."""

    def __init__(self, folder: Path, about: RunInfo) -> None:
        self._writer = SummaryWriter(folder / "tensorboard")
        self._writer.add_custom_scalars(layout(about.kind))
        for name, facts in (("config", about.config), ("environment", about.environment)):
            text = yaml.safe_dump(dict(facts), sort_keys=False)
            self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # here and below: a value that a kill loses is not written again

    def distribution(self, step: int, name: str, values: np.ndarray) -> None:
        self._writer.add_histogram(name, values, step, bins=64)
        self._writer.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Record rows as text, without the pictures in them: `picture` records one of all of them."""
        columns = [column for column, cell in rows[0].items() if not isinstance(cell, np.ndarray)]
        lines = [columns, ["---"] * len(columns), *([_text(row[column]) for column in columns] for row in rows)]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)
        self._writer.flush()

    def export(self, path: Path) -> None:
        """Record the path of the file as text, as TensorBoard takes no files."""
        self._writer.add_text("exports", str(path))
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


def layout(kind: Kind) -> dict[str, dict[str, list]]:
    """The charts of lines of a job in the form of TensorBoard's custom scalars: section -> title -> kind and tags."""
    sections = {
        section: [chart for chart in charts if chart.drawn == "lines"] for section, charts in PAGES[kind].items()
    }
    return {  # tags are matched from their start only
        section: {chart.title: ["Multiline", [f"{pattern}$" for pattern in chart.all_patterns]] for chart in charts}
        for section, charts in sections.items()
        if charts
    }


def _text(cell: float | str | np.ndarray | None) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell)
