"""The page of a finished training run. What it learns from tells its part (see `fss.train.tasks`)."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from fss.methods.base import Method
from fss.report import episode_section, label_section, view_section
from fss.report.curves import curves
from fss.report.page import Page, Picture, ReportSection, write_page
from fss.tracking.run_dir import RunDir, last_environment, resume_command
from fss.train.tasks import Task

SECTIONS = {
    "pretrain": view_section.report_section,
    "base": label_section.report_section,
    "meta": episode_section.report_section,
}
"""Kind of a task -> the part of the page that depends on what it learns from."""


def report(run: RunDir, method: Method, task: Task, device: torch.device) -> Path:
    """Draw the pictures of `run` as its method stands now, and write its page. For one rank; returns the HTML's path.

    device: where the method is.
    A sample that cannot be read is left out of the pictures.
    """
    rows = run.rows()
    options = json.loads((run.folder / "run.json").read_text())
    environment = last_environment(run.folder)
    steps = max((row["step"] for row in rows), default=0)
    seen = steps * options["data.batch"]
    section = SECTIONS[task.kind](run, method, task)
    page = Page(
        title=f"{run.folder.name}: {type(method).__name__} on {task.shards.manifest.name}",
        ran=_what_ran(method, task, steps, options, f"{environment['world_size']} x {device.type}") | section.ran,
        verdicts=section.verdicts,
        caveats=[*method.caveats(seen), *task.caveats()],
        pictures=[_curves(run, rows, section, task.unit), *section.pictures],
        environment={
            **{
                k: v for k, v in environment.items() if v is not None and k not in ("packages", "command", "world_size")
            },
            **environment["packages"],
        },
        resume=resume_command(environment["command"], environment["world_size"], device.type),
        unit=task.unit,
    )
    return write_page(run.report, page, rows)


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


def _curves(run: RunDir, rows: list[dict], section: ReportSection, unit: str) -> Picture:
    fills = {row["step"]: [v for k, v in row.items() if k.startswith("fill/")] for row in rows}
    last = max((step for step, fill in fills.items() if any(v < 1 for v in fill)), default=0)
    filling = min((step for step in fills if step > last), default=last) if last else 0
    curves(
        rows,
        run.report / "curves.png",
        levels=section.levels,
        guess=section.guess,
        unit=unit,
        filling=filling,
    )
    caption = (
        "Few values are points, many a thin line under their running mean. Dashed, in the colour of the value: "
        f"{section.guess_explained}."
    )
    if filling:
        caption += " While a queue is filling, most negatives are random vectors and the loss is lower than it will be."
    return Picture(title="Curves", file="curves.png", caption=caption, wide=True)
