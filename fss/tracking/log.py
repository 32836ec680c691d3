"""The log of a run: metrics.jsonl, the console, and the trackers that are switched on."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fss.errors import ConfigError, at_least
from fss.tracking.catalogue import CHANCE_LEVEL, metric_of
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import ArtifactMode, Row, RunInfo, SentLog, Tracker, WandbMode

if TYPE_CHECKING:
    from rich.console import RenderableType


DATA_WAIT = 0.1
"""Share of rank 0's time that it waits for data, above which they are too slow."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Frequency of logging, and the trackers that receive the values."""

    every: int = 20
    """Optimizer steps between log lines."""
    wandb: WandbMode = "auto"
    """auto: online if an API key is found, else offline, to be sent as docs/dashboards.md describes; it never asks."""
    project: str = "fss"
    """wandb project."""
    group: str | None = None
    """wandb group, for runs of one experiment (jobs, folds, seeds); null: the folder that the run directory is in."""
    artifacts: ArtifactMode = "reference"
    """Exported weights in wandb, each linked to the runs that made and used it. reference: by digest and place; upload:
    the files too."""
    tensorboard: bool = False
    """Also write TensorBoard's files, RUN/tensorboard: a tracker without an account."""

    def __post_init__(self) -> None:
        at_least("log", self, every=1)
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(
                'log.tensorboard is true but TensorBoard is not installed: pip install -e ".[tensorboard]"'
            )


class Log:
    """The log of one run. Only rank 0 makes an active one; on other ranks every call does nothing.

    total: the steps (of an evaluation: episodes) of the whole run. unit: what a batch is made of, for the console.
    slow_data: the sentence to say, once, after a row that waited for data longer than `DATA_WAIT`; not after the first
    row, as the workers start then.
    """

    def __init__(
        self,
        run: RunDir,
        config: LogConfig,
        *,
        active: bool,
        about: RunInfo,
        total: int,
        unit: str,
        slow_data: str = "",
    ) -> None:
        self._active = active
        self._slow_data = slow_data
        self._measured = False
        self._total = total
        self._unit = unit
        self._chance_levels = about.chance_levels
        self._trackers: list[tuple[Tracker, SentLog]] = []
        if not active:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
        self._trackers = _open(run.folder, config, about)

    def say(self, text: "RenderableType") -> None:
        """Print a line or a table on the console."""
        if self._active:
            self._console.print(text, markup=False)

    def at(self, step: int) -> None:
        """Move the progress bar."""
        if self._active:
            self._bar.update(self._task, completed=step)

    def row(self, row: dict[str, Any]) -> None:
        """Log one line of metrics.jsonl, on the console and in the trackers, too.

        row: contains 'step', and may contain 'speed', a dictionary of its own.
        """
        if not self._active:
            return
        with open(self._metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.say(self._line(row))
        if "speed" in row:
            self._judge(row["speed"])
        flat = {name: value for name, value in row.items() if name not in ("step", "speed")}
        flat |= {f"speed/{name}": value for name, value in row.get("speed", {}).items()}
        flat |= {f"{CHANCE_LEVEL}{name}": level for name, level in self._chance_levels.items() if name in flat}
        self.scalars(row["step"], flat)

    def _judge(self, speed: dict[str, float]) -> None:
        """Say that the data are too slow, if they are; once."""
        if self._measured and self._slow_data and speed["data_wait"] > DATA_WAIT:
            rate = f"{speed['images_per_s']:.4g} {self._unit}/s"
            self.say(f"note: data wait {speed['data_wait']:.0%} at {rate}: {self._slow_data}")
            self._slow_data = ""
        self._measured = True

    def _line(self, row: dict[str, Any]) -> str:
        words = [f"step {row['step']}/{self._total}"]
        if "epoch" in row:
            words.append(f"epoch {row['epoch']:.2f}")
        words += [f"{name} {value:.4g}" for name, value in row.items() if _on_console(name)]
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
        """Log values in the trackers alone."""
        self._send(step, next(iter(values)), lambda tracker: tracker.scalars(step, values))

    def distributions(self, step: int, measured: Callable[[], dict[str, Tensor]]) -> None:
        """Log values [n] by name as histograms in the trackers; without a tracker nothing is measured."""
        if self._trackers:
            for name, values in measured().items():
                self._send(step, name, partial(_send_distribution, step, name, values.cpu().numpy()))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Log a PNG in the trackers."""
        self._send(step, name, lambda tracker: tracker.picture(step, name, path))

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Log a table in the trackers; arrays in it are pictures."""
        self._send(step, name, lambda tracker: tracker.table(step, name, rows))

    def export(self, step: int, path: Path) -> None:
        """Log a file that the run leaves for others in the trackers."""
        self._send(step, path.name, lambda tracker: tracker.export(path))

    def _send(self, step: int, name: str, send: Callable[[Tracker], None]) -> None:
        """Call `send` for each tracker that has not received `name` at `step`."""
        for tracker, sent in self._trackers:
            if not sent.contains(step, name):
                send(tracker)
                sent.add(step, name)

    def close(self, *, failed: bool = False) -> None:
        """Stop the progress bar and end the run in the trackers."""
        if self._active:
            self._bar.stop()
        for tracker, _ in self._trackers:
            tracker.close(failed=failed)
        self._trackers = []


def _send_distribution(step: int, name: str, values: np.ndarray, tracker: Tracker) -> None:
    tracker.distribution(step, name, values)


def _open(folder: Path, config: LogConfig, about: RunInfo) -> list[tuple[Tracker, SentLog]]:
    """The trackers that are switched on, and what each has received before. Each takes a second to import."""
    trackers: list[tuple[Tracker, SentLog]] = []
    if config.wandb != "off":
        from fss.tracking.wandb_tracker import WandbRun

        run = WandbRun(
            folder, about, mode=config.wandb, project=config.project, group=config.group, artifacts=config.artifacts
        )
        trackers.append((run, SentLog(folder / "wandb.sent")))
    if config.tensorboard:
        from fss.tracking.tensorboard_tracker import TensorBoard  # an extra

        trackers.append((TensorBoard(folder, about), SentLog(folder / "tensorboard.sent")))
    return trackers


def _forget(folder: Path) -> None:
    """Remove what an earlier start sent that left no checkpoint: it may be repeated with other options, and trackers
    must not take both for one run."""
    for name in ("wandb.id", "wandb.sent", "tensorboard.sent"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _on_console(name: str) -> bool:
    """True for the metrics of the catalogue that say so, and for scores and losses of methods that it does not know."""
    metric = metric_of(name)
    return metric.console if metric else bool({"loss", "top1", "miou"} & set(name.split("/")))
