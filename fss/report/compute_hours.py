"""Device-hours of a run and of the runs that its weights come from, computed from the records of these runs."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from fss.report.curves import series
from fss.tracking.lineage import weights_of
from fss.tracking.run_dir import RunDir, last_environment

EXPORT_OPTIONS = ("weights", "method.prior_weights", "method.base_weights")  # whose files are always exports of a run
CORE = "CPU core"  # each thread of a rank uses one


def evaluation_hours(folder: Path) -> dict[str, float]:
    """Device -> hours that the episodes of the evaluation in `folder` took, all ranks together."""
    results = json.loads((folder / "results.json").read_text())
    _, device, devices = _hardware(folder)
    return {device: devices * results["episodes"] * results["seconds_per_episode"] / 3600}


def training_hours(folder: Path) -> dict[str, float] | None:
    """Device -> hours of the optimizer steps of all runs behind the weights of an evaluation, all ranks together.

    None if there are no such runs, or if the directory of one has been moved. Steps that a resumed run repeated count
    once; weights of other projects, such as a backbone's, count nothing.
    """
    hours: dict[str, float] = {}
    runs = list(_input_runs(folder))
    for run in runs:
        if not (run / "metrics.jsonl").exists():
            return None
        ranks, device, devices = _hardware(run)
        steps, seconds = series(RunDir(run).rows(), "speed/step_s")
        of_run = ranks * devices * float(np.diff(steps, prepend=0) @ seconds) / 3600
        hours[device] = hours.get(device, 0) + of_run
        runs += [other for other in _input_runs(run) if other not in runs]
    return hours or None


def _input_runs(folder: Path) -> Iterator[Path]:
    """The run directories of the weights with which the run in `folder` began."""
    for key, path in weights_of(yaml.safe_load((folder / "config.yaml").read_text())).items():
        if key in EXPORT_OPTIONS or (path.parent / "run.json").exists():
            yield path.parent


def _hardware(folder: Path) -> tuple[int, str, int]:
    """The number of ranks, their device, and the devices of each rank, at the last start of a run."""
    environment = last_environment(folder)
    if environment["device"] == "cpu":
        return environment["world_size"], CORE, environment["threads"]
    return environment["world_size"], environment["device"], 1
