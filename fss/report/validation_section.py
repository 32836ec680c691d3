"""What the pages of trainings that are validated on the way have in common."""

import shutil
from collections.abc import Sequence

from fss.nn.exports import read_header
from fss.report.curves import series
from fss.report.page import Picture
from fss.tracking.run_dir import RunDir


def best_weights(run: RunDir, rows: Sequence[dict], on: str) -> str:
    """Which weights are the best, and how they were chosen; `on`: what a validation was measured on."""
    best = run.folder / "best.safetensors"
    if not best.exists():
        return "best.safetensors is no longer there"
    known = read_header(best)
    count = len(series(rows, known.scored_by or "")[1])
    return f"of step {known.steps:,}: the highest {known.scored_by}, {known.score:.1%}, of {count} validations on {on}"


def last_picture(run: RunDir, shown: str) -> list[Picture]:
    """The last picture of a validation, if there is any, copied beside the page; `shown` says what is on it."""
    drawn = sorted((run.folder / "validation").glob("step_*.png"))
    if not drawn:
        return []
    shutil.copyfile(drawn[-1], run.report / "validation.png")
    step = int(drawn[-1].stem.removeprefix("step_"))
    caption = f"Step {step:,}: {shown} Earlier ones are in the folder validation of the run."
    return [Picture(title="Last validation", file="validation.png", caption=caption, wide=True)]
