"""Evaluations that are small enough to run many times, and what they leave."""

import json
import time
from pathlib import Path

from tests.support.launching import Launched
from tests.support.places import ROOT

LAUNCHER = ROOT / "launch" / "evaluate.py"
EPISODES = 60
SLOWLY = ["--eval.cache_gib", "0"]  # the same pixels, and time to interfere
METHOD = "--method prototype --method.backbone resnet18 --method.size 129".split()


def job(labelled: Path, folder: Path, method: list[str] = METHOD) -> list[str]:
    """The words of an evaluation on packed shards whose run directory is `folder`."""
    return [
        *method,
        *("--data.shards", str(labelled), "--run.dir", str(folder), "--eval.episodes", str(EPISODES)),
        *"--run.device cpu --data.workers 1 --eval.seeds [7] --log.wandb off --run.report false".split(),
    ]


def recorded(folder: Path) -> dict[tuple[int, int], list]:
    """Whole lines of the record: (seed, number) -> counts."""
    rows = {}
    for path in folder.glob("episodes/rank_*.jsonl"):
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                row = json.loads(line)
                assert (row["seed"], row["number"]) not in rows, "an episode was done twice"
                rows[row["seed"], row["number"]] = row["counts"]
    return rows


def scores(folder: Path) -> dict:
    """The figures in results.json that must not depend on ranks and restarts."""
    results = json.loads((folder / "results.json").read_text())
    return {name: results[name] for name in ("miou", "fb_iou", "seeds", "classes", "episodes", "images")}


def until(started: Launched, folder: Path, episodes: int) -> None:
    """Wait until so many episodes are recorded."""
    while len(recorded(folder)) < episodes:
        assert started.running, started.wait()[1]
        time.sleep(0.005)
