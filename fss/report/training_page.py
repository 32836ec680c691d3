"""The page of a finished training run. Its kind of task decides one section of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fss.compat import current_options
from fss.methods.base import Method
from fss.report import episode_section, label_section, view_section
from fss.report.curves import curves
from fss.report.page import Page, Picture, ReportSection, environment_summary, write_page
from fss.tracking.run_dir import RunDir, last_environment, resume_command
from fss.train.tasks import EpisodeTask, LabelTask, Task, ViewTask


def report(run: RunDir, method: Method, task: Task, device: torch.device) -> Path:
    """Draw the pictures of `run` with its method as it is now, and write its page. For one rank.

    device: of the method. Returns the path of the HTML. Samples that cannot be read are left out of the pictures.
    """
    rows = run.rows()
    options = current_options(json.loads((run.folder / "run.json").read_text()))
    environment = last_environment(run.folder)
    steps = max((row["step"] for row in rows), default=0)
    samples_seen = steps * options["data.batch"]
    section = _section(run, method, task)
    ranks = f"{environment['world_size']} x {device.type}"
    page = Page(
        title=f"{run.folder.name}: {type(method).__name__} on {task.shards.manifest.name}",
        summary=_summary(method, task, steps, options, ranks) | dict(section.summary),
        verdicts=section.verdicts,
        caveats=[*method.caveats(samples_seen), *task.caveats()],
        pictures=[_curves(run, rows, section, task.unit), *section.pictures],
        environment=environment_summary(environment),
        resume=resume_command(environment["command"], environment["world_size"], device.type),
        unit=task.unit,
    )
    return write_page(run.report, page, rows)


def _section(run: RunDir, method: Any, task: Task) -> ReportSection:
    """The section that depends on the kind of the task. method: of the kind that the task trains."""
    if isinstance(task, ViewTask):
        return view_section.report_section(run, method, task)
    if isinstance(task, LabelTask):
        return label_section.report_section(run, method, task)
    if isinstance(task, EpisodeTask):
        return episode_section.report_section(run, method, task)
    raise TypeError(f"there is no section for a {type(task).__name__}")


def _summary(method: Method, task: Task, steps: int, options: Mapping[str, Any], ranks: str) -> dict[str, object]:
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


def _curves(run: RunDir, rows: Sequence[dict], section: ReportSection, unit: str) -> Picture:
    fills = {row["step"]: [v for k, v in row.items() if k.startswith("fill/")] for row in rows}
    last = max((step for step, fill in fills.items() if any(v < 1 for v in fill)), default=0)
    filling = min((step for step in fills if step > last), default=last) if last else 0
    curves(
        rows,
        run.report / "curves.png",
        baselines=section.baselines,
        baseline_name=section.baseline_name,
        unit=unit,
        filling=filling,
    )
    caption = (
        "Few values are points, many a thin line under their running mean. Dashed, in the colour of the value: "
        f"{section.baseline_description}."
    )
    if filling:
        caption += " While a queue is filling, most negatives are random vectors and the loss is lower than it will be."
    return Picture(title="Curves", file="curves.png", caption=caption, wide=True)
