"""The page of a finished training run. What it learns from tells its part (see `fss.engine.tasks`)."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from fss.engine.reports.curves import curves
from fss.engine.reports.page import Page, Picture, Story, write_page
from fss.engine.run import RunDir
from fss.engine.tasks import Task
from fss.methods.base import Method


def report(run: RunDir, method: Method, task: Task, device: torch.device) -> Path:
    """Draw the pictures of `run` as its method stands now, and write its page. For one rank; returns the HTML's path.

    device: where the method is.
    A sample that cannot be read is left out of the pictures.
    """
    rows = run.rows()
    options = json.loads((run.folder / "run.json").read_text())
    environment = json.loads((run.folder / "environment.jsonl").read_text().splitlines()[-1])
    steps = max((row["step"] for row in rows), default=0)
    seen = steps * options["data.batch"]
    story = task.story(method, run)
    page = Page(
        title=f"{run.folder.name}: {type(method).__name__} on {task.shards.manifest.name}",
        ran=_what_ran(method, task, steps, options, f"{environment['world']} x {device.type}") | story.ran,
        verdicts=story.verdicts,
        cautions=[*method.cautions(seen), *task.cautions()],
        pictures=[_curves(run, rows, story, task.unit), *story.pictures],
        environment={
            **{k: v for k, v in environment.items() if v is not None and k not in ("packages", "command", "world")},
            **environment["packages"],
        },
        resume=resume_command(environment["command"], environment["world"], device.type),
        unit=task.unit,
    )
    return write_page(run.report, page, rows)


def resume_command(command: str, world: int, device: str) -> str:
    """What to type, in the same folder, to go on with a run that `command` started."""
    several = f"--multi_gpu --num_processes {world} " if world > 1 else "--num_processes 1 "
    return f"{'ACCELERATE_USE_CPU=true ' if device == 'cpu' else ''}accelerate launch {several}{command}"


def _what_ran(method: Method, task: Task, steps: int, options: Mapping, ranks: str) -> dict[str, object]:
    manifest, seen = task.shards.manifest, steps * options["data.batch"]
    settings = {k.removeprefix("method."): v for k, v in options.items() if k.startswith("method.")}
    return {
        "method": type(method).__name__,
        "data": f"{manifest.name}: {len(task.shards):,} images, {len(manifest.classes)} classes",
        "ranks": ranks,
        "steps": f"{steps:,} of {options['data.batch']} {task.unit}",
        f"{task.unit} seen": f"{seen:,} ({seen / task.samples:.1f} epochs)",
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
    }


def _curves(run: RunDir, rows: list[dict], story: Story, unit: str) -> Picture:
    fills = {row["step"]: [v for k, v in row.items() if k.startswith("fill/")] for row in rows}
    last = max((step for step, fill in fills.items() if any(v < 1 for v in fill)), default=0)
    filling = min((step for step in fills if step > last), default=last) if last else 0
    curves(rows, run.report / "curves.png", levels=story.levels, guess=story.guess, unit=unit, filling=filling)
    caption = (
        "Few values are points, many a thin line under their running mean. Dashed, in the colour of the value: "
        f"{story.guess_explained}."
    )
    if filling:
        caption += " While a queue is filling, most negatives are random vectors and the loss is lower than it will be."
    return Picture(title="Curves", file="curves.png", caption=caption, wide=True)
