"""Where a run's numbers go: metrics.jsonl, the console, wandb. The only file that imports wandb."""

import json
import netrc
import os
import secrets
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import wandb
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fss.engine.run import RunDir
from fss.errors import at_least

HEADLINE = {"loss", "top1", "miou"}    # a console line shows the values that have one of these words in their name


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged, how often, and to which wandb project."""

    every: int = 20
    """Optimizer steps between log lines."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online where an API key is found, else offline; it never asks. Offline runs: `wandb sync RUN/wandb/*`."""
    project: str = "fss"
    """wandb project."""
    group: str | None = None
    """wandb group, for runs that belong together (folds, seeds)."""

    def __post_init__(self) -> None:
        at_least("log", self, every=1)


class Log:
    """One run's log. Only rank 0 makes an active one; on other ranks every call does nothing.

    total: the steps (of an evaluation: episodes) of the whole run. unit: what a batch is made of, for the console.
    """

    def __init__(self, run: RunDir, config: LogConfig, *, active: bool, snapshot: dict, total: int, unit: str) -> None:
        self._active = active
        self._total = total
        self._unit = unit
        self._wandb = None
        if not active:
            return
        self._metrics = run.metrics
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self._console, disable=not sys.stdout.isatty(),
        )    # fmt: skip
        self._task = self._bar.add_task(run.folder.name, total=total)
        self._bar.start()
        if config.wandb != "off":
            self._wandb = _start_wandb(run.folder, config, snapshot)

    def say(self, text: RenderableType) -> None:
        """A line, or a table, on the console."""
        if self._active:
            self._console.print(text, markup=False)

    def at(self, step: int) -> None:
        """Move the progress bar."""
        if self._active:
            self._bar.update(self._task, completed=step)

    def row(self, row: dict) -> None:
        """A line of metrics.jsonl, on the console and in wandb. `row` holds 'step'; 'speed' may be nested."""
        if not self._active:
            return
        with open(self._metrics, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.say(self._line(row))
        if self._wandb:
            flat = {name: value for name, value in row.items() if name not in ("step", "speed")}
            flat |= {f"speed/{name}": value for name, value in row.get("speed", {}).items()}
            self._wandb.log(flat, step=row["step"])

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

    def picture(self, name: str, path: Path, step: int | None = None) -> None:
        """A PNG for wandb's media panel, beside the row of `step` where one is given."""
        if self._wandb:
            self._wandb.log({name: wandb.Image(str(path))}, step=step)

    def close(self, *, failed: bool = False) -> None:
        """Stop the bar and end the wandb run."""
        if self._active:
            self._bar.stop()
        if self._wandb:
            self._wandb.finish(exit_code=int(failed))
            self._wandb = None


def _start_wandb(folder: Path, config: LogConfig, snapshot: dict):
    mode = config.wandb
    if mode == "auto":
        mode = "online" if _has_key() else "offline"

    def start(mode: str):
        return wandb.init(
            mode=mode,
            dir=str(folder),
            project=config.project,
            group=config.group,
            name=folder.name,
            id=_run_id(folder),
            resume="allow" if mode == "online" else None,
            config=snapshot,
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )

    try:
        return start(mode)
    except wandb.Error as error:
        print(f"wandb is not reachable ({error}): logging offline, sync later", file=sys.stderr)
        return start("offline")


def _run_id(folder: Path) -> str:
    """This run's id for wandb, the same at every start, another in another folder of the same name."""
    path = folder / "wandb.id"
    if not path.exists():
        path.write_text(secrets.token_hex(6))
    return path.read_text()


def _has_key() -> bool:
    """Is there an account to log in to without asking?"""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
