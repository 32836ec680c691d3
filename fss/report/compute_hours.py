"""Device-hours of a run and of the runs that its weights come from, by what these runs wrote down themselves."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from fss.report.curves import series
from fss.tracking.lineage import weights_of
from fss.tracking.run_dir import RunDir, last_environment

OURS = ("weights", "method.prior_weights", "method.base_weights")  # options that can only name an export of a run
CORE = "CPU core"  # each thread of a rank keeps one busy


def evaluation_hours(folder: Path) -> Counter[str]:
    """Device -> hours that the episodes of an evaluation took, all ranks together."""
    found = json.loads((folder / "results.json").read_text())
    _, device, each = _place(folder)
    return Counter({device: each * found["episodes"] * found["seconds_per_episode"] / 3600})


def training_hours(folder: Path) -> Counter[str] | None:
    """Device -> hours of the optimizer steps of all runs behind the weights of an evaluation, all ranks together.

    None where there are no such runs, or one of them no longer lies where it was. Steps that a resumed run took twice
    count once; other people's weights, such as a backbone's, count nothing.
    """
    hours: Counter[str] = Counter()
    behind = list(_made_from(folder))
    for run in behind:
        if not (run / "metrics.jsonl").exists():
            return None
        ranks, device, each = _place(run)
        steps, seconds = series(RunDir(run).rows(), "speed/step_s")
        hours[device] += ranks * each * float(np.diff(steps, prepend=0) @ seconds) / 3600
        behind += [other for other in _made_from(run) if other not in behind]
    return hours or None


def _made_from(folder: Path) -> Iterator[Path]:
    """The run directories of the weights that a run began with."""
    for key, path in weights_of(yaml.safe_load((folder / "config.yaml").read_text())).items():
        if key in OURS or (path.parent / "run.json").exists():
            yield path.parent


def _place(folder: Path) -> tuple[int, str, int]:
    """Ranks, what they ran on, and how many of it each of them had, at the last start of a run."""
    environment = last_environment(folder)
    if environment["device"] == "cpu":
        return environment["world_size"], CORE, environment["threads"]
    return environment["world_size"], environment["device"], 1
