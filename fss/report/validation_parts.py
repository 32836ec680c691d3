"""The parts that the pages of all validated trainings share."""

import shutil
from collections.abc import Sequence

from fss.nn.exports import read_header
from fss.report.curves import series
from fss.report.page import Picture
from fss.tracking.run_dir import RunDir


def best_weights(run: RunDir, rows: Sequence[dict], validated_on: str) -> str:
    """Sentence on the step and the score of the best weights of `run`.

    rows: the lines of metrics.jsonl. validated_on: a noun phrase for the images or episodes of a validation.
    """
    best = run.folder / "best.safetensors"
    if not best.exists():
        return "best.safetensors no longer exists"
    header = read_header(best)
    count = len(series(rows, header.scored_by or "")[1])
    score = f"the highest {header.scored_by}, {header.score or 0:.1%}, of {count} validations on {validated_on}"
    return f"of step {header.steps or 0:,}: {score}"


def last_picture(run: RunDir, description: str) -> list[Picture]:
    """Copy the last picture of a validation, if there is one, into the report folder. description: for its caption."""
    pictures = sorted((run.folder / "validation").glob("step_*.png"))
    if not pictures:
        return []
    shutil.copyfile(pictures[-1], run.report / "validation.png")
    step = int(pictures[-1].stem.removeprefix("step_"))
    caption = f"Step {step:,}: {description} Earlier ones are in the folder validation of the run."
    return [Picture(title="Last validation", file="validation.png", caption=caption, wide=True)]
