"""Where a run's numbers go: metrics.jsonl, the console, and the viewers that were asked for."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fss.errors import ConfigError, at_least
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import Row, RunInfo, SentLog, Tracker
from fss.tracking.wandb_tracker import Keeping, Mode, WandbRun

HEADLINE = {"loss", "top1", "miou"}  # a console line shows the values that have one of these words in their name


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged, how often, and where it can be looked at."""

    every: int = 20
    """Optimizer steps between log lines."""
    wandb: Mode = "auto"
    """auto: online where an API key is found, else offline, to be sent as docs/dashboards.md says; it never asks."""
    project: str = "fss"
    """wandb project."""
    group: str | None = None
    """wandb group, for runs of one experiment (jobs, folds, seeds); null: the folder that the run directory is in."""
    artifacts: Keeping = "reference"
    """Exported weights in wandb, each linked to the runs that made and used it. reference: by digest and place; upload:
    the files too."""
    tensorboard: bool = False
    """Also write TensorBoard's files, RUN/tensorboard: a viewer without an account."""

    def __post_init__(self) -> None:
        at_least("log", self, every=1)
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                'log.tensorboard is true but TensorBoard is not installed: pip install -e ".[tensorboard]"'
            )


class Log:
    """One run's log. Only rank 0 makes an active one; on other ranks every call does nothing.

    total: the steps (of an evaluation: episodes) of the whole run. unit: what a batch is made of, for the console.
    """

    def __init__(self, run: RunDir, config: LogConfig, *, active: bool, about: RunInfo, total: int, unit: str) -> None:
        self._active = active
        self._total = total
        self._unit = unit
        self._levels = about.levels
        self._viewers: list[tuple[Tracker, SentLog]] = []
        if not active:
            return
        self._metrics = run.metrics
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(run.folder.name, total=total)
        self._bar.start()
        if not run.begun():
            _forget(run.folder)
        self._viewers = _open(run.folder, config, about)

    def say(self, text: RenderableType) -> None:
        """A line, or a table, on the console."""
        if self._active:
            self._console.print(text, markup=False)

    def at(self, step: int) -> None:
        """Move the progress bar."""
        if self._active:
            self._bar.update(self._task, completed=step)

    def row(self, row: dict) -> None:
        """A line of metrics.jsonl, on the console and in the viewers. `row` holds 'step'; 'speed' may be nested."""
        if not self._active:
            return
        with open(self._metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.say(self._line(row))
        flat = {name: value for name, value in row.items() if name not in ("step", "speed")}
        flat |= {f"speed/{name}": value for name, value in row.get("speed", {}).items()}
        flat |= {f"chance/{name}": level for name, level in self._levels.items() if name in flat}
        self.scalars(row["step"], flat)

    def _line(self, row: dict) -> str:
        words = [f"step {row['step']}/{self._total}"]
        if "epoch" in row:
            words.append(f"epoch {row['epoch']:.2f}")
        words += [f"{name} {value:.4g}" for name, value in row.items() if HEADLINE & set(name.split("/"))]
        if "speed" in row:
            speed = row["speed"]
            left = timedelta(seconds=round((self._total - row["step"]) * speed["step_s"]))
            words += [
                f"{speed['images_per_s']:.4g} {self._unit}/s",
                f"data wait {speed['data_wait']:.0%}",
                f"eta {left}",
            ]
        return "  ".join(words)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values that only the viewers show."""
        self._show(step, next(iter(values)), lambda viewer: viewer.scalars(step, values))

    def distributions(self, step: int, measured: Callable[[], dict[str, Tensor]]) -> None:
        """Histograms in the viewers; where there is none, nothing is measured."""
        if self._viewers:
            for name, values in measured().items():
                array = values.cpu().numpy()
                self._show(step, name, lambda viewer, name=name, array=array: viewer.distribution(step, name, array))

    def picture(self, step: int, name: str, path: Path) -> None:
        """A PNG in the viewers."""
        self._show(step, name, lambda viewer: viewer.picture(step, name, path))

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """A table in the viewers; arrays in it are pictures."""
        self._show(step, name, lambda viewer: viewer.table(step, name, rows))

    def export(self, step: int, path: Path) -> None:
        """A file that the run leaves for others, known to the viewers from here on."""
        self._show(step, path.name, lambda viewer: viewer.export(path))

    def _show(self, step: int, name: str, send: Callable[[Tracker], None]) -> None:
        for viewer, ledger in self._viewers:
            if not ledger.holds(step, name):
                send(viewer)
                ledger.add(step, name)

    def close(self, *, failed: bool = False) -> None:
        """Stop the bar and end the run in the viewers."""
        if self._active:
            self._bar.stop()
        for viewer, _ in self._viewers:
            viewer.close(failed=failed)
        self._viewers = []


def _open(folder: Path, config: LogConfig, about: RunInfo) -> list[tuple[Tracker, SentLog]]:
    """The viewers that were asked for, and what they have got before."""
    viewers: list[tuple[Tracker, SentLog]] = []
    if config.wandb != "off":
        run = WandbRun(
            folder, about, mode=config.wandb, project=config.project, group=config.group, artifacts=config.artifacts
        )
        viewers.append((run, SentLog(folder / "wandb.sent")))
    if config.tensorboard:
        from fss.tracking.tensorboard_tracker import TensorBoard  # an extra, and a second of imports

        viewers.append((TensorBoard(folder, about), SentLog(folder / "tensorboard.sent")))
    return viewers


def _forget(folder: Path) -> None:
    """A start that left nothing to go on from may be repeated with other options: viewers must not take both for one."""
    for name in ("wandb.id", "wandb.sent", "tensorboard.sent"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
