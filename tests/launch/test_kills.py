"""Processes of a job are killed at twenty moments: a job that is started again ends as an undisturbed one, bit for bit.

The processes are ranks and launchers; the moments lie in start-up, steps, saves, measurements, episodes and reports.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fss.tracking.run_dir import RunDir
from launch import evaluate, meta_train, pretrain_prior, train_base
from shards.synthetic import synthetic
from shards.write import pack
from tests.support import evaluating, launching
from tests.support.labelled import rectangles
from tests.support.launching import LONG, STEPS, Launched, assert_same, job
from tests.support.ranks import on_ranks

PATIENCE = 1200  # seconds for what takes one or two minutes on a machine that does nothing else
pytestmark = [pytest.mark.slow, pytest.mark.timeout(5 * PATIENCE)]
SAVE = "save"


@dataclass(frozen=True)
class Kind:
    """A job that trains or evaluates."""

    main: Callable[[list[str]], int]
    launcher: Path
    words: Callable[[Path, Path], list[str]]
    """(shards, run directory) -> options."""
    far: Callable[[Path], int]
    """run directory -> steps or episodes done, of `end`."""
    end: int
    same: Callable[[Path, Path], None]
    """Raises AssertionError unless two run directories contain the same result."""


def steps(folder: Path) -> int:
    return max((row["step"] for row in RunDir(folder).rows() if "loss" in row), default=0)


def episodes(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in folder.glob("episodes/rank_*.jsonl"))


def same_run(one: Path, other: Path) -> None:
    """The last checkpoint, every row but its speed, and all exported weights."""
    assert_same(one, other)
    exports = sorted(path.name for path in one.glob("*.safetensors"))
    assert exports == sorted(path.name for path in other.glob("*.safetensors"))
    for name in exports:
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        assert not [key for key in expected if not expected[key].equal(found[key])], name


def same_counts(one: Path, other: Path) -> None:
    """Every pixel that was counted, and the scores made of them."""
    assert evaluating.recorded(one) == evaluating.recorded(other)
    assert evaluating.scores(one) == evaluating.scores(other)


EPISODES = 40
PAGE = ["--run.report", "true"]
SMALL = [*f"--method.size 65 --eval.episodes {EPISODES}".split(), *PAGE]


def evaluation(shards: Path, folder: Path) -> list[str]:
    return [*evaluating.job(shards, folder), *evaluating.SLOWLY, *SMALL]


EVERY = ["--optim.steps", str(STEPS), "--checkpoint.every", "2", "--validate.every", "3", *PAGE]
KINDS = {
    "pretrain": Kind(
        pretrain_prior.main, launching.LAUNCHER, lambda *at: job(LONG, *at, *PAGE), steps, STEPS, same_run
    ),
    "meta": Kind(
        meta_train.main,
        launching.META_LAUNCHER,
        lambda *at: job(launching.META, *at, *EVERY),
        steps,
        STEPS,
        same_run,
    ),
    "base": Kind(
        train_base.main,
        launching.BASE_LAUNCHER,
        lambda *at: job(launching.BASE, *at, *EVERY),
        steps,
        STEPS,
        same_run,
    ),
    "evaluate": Kind(
        evaluate.main,
        evaluating.LAUNCHER,
        evaluation,
        episodes,
        EPISODES,
        same_counts,
    ),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> dict[str, Path]:
    """The set of each kind of job."""
    folder = tmp_path_factory.mktemp("shards")
    pack(synthetic(60), folder / "labelled", samples_per_shard=25)
    pack(synthetic(20), folder / "unlabelled", superpixels=("slic",), samples_per_shard=12)
    coloured = rectangles(folder / "coloured", [1, 2, 3, 4] * 5).folder
    return {
        "pretrain": folder / "unlabelled",
        "evaluate": folder / "labelled",
        "meta": coloured,
        "base": coloured,
    }


def moments(kind: Kind, world_size: int, count: int, draw: random.Random) -> Iterator[tuple[int | str, float, int]]:
    """`count` moments in order: (steps or episodes done, seconds later, index of the process).

    The first of a training is inside a save.
    """
    places = sorted(draw.sample(range(1, kind.end), count))
    for number, far in enumerate(places):
        inside = number == 0 and kind.same is same_run
        yield SAVE if inside else far, 0 if inside else draw.random() * 0.3, draw.randint(0, world_size)


def killed(launched: Launched, kind: Kind, folder: Path, far: int | str, delay: float, who: int) -> None:
    """Kill one process of a job at a moment, and wait until the others have exited."""
    began = time.time()

    def fresh(path: Path) -> bool:
        return path.exists() and path.stat().st_mtime > began

    def come() -> bool:
        if far == SAVE:
            return any(fresh(path) for path in folder.glob("checkpoints/.step_*.tmp/state.safetensors"))
        return any(fresh(folder / name) for name in ("metrics.jsonl", "status.json")) and kind.far(folder) >= far

    while not come():
        assert launched.running, f"it ended before the moment: {launched.wait()[1]}"
        time.sleep(0.002 if far == SAVE else 0.02)  # a save is short; rows take the job's CPU time to read
    time.sleep(delay)
    assert launched.running, f"it ended before the kill: {launched.wait()[1]}"
    launched.kill_one(who)
    code, _ = launched.wait(PATIENCE)
    assert code


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, shards) -> Callable[[str, int], Path]:
    """(kind, ranks) -> the run directory of that job, which nothing disturbed."""

    @cache
    def finished(name: str, world_size: int) -> Path:
        folder = tmp_path_factory.mktemp("whole") / "run"
        finish(name, world_size, words(name, world_size, shards, folder))
        return folder

    return lambda name, world_size: finished(name, 2 if name == "evaluate" else world_size)  # counts need no number


def words(name: str, world_size: int, shards: dict[str, Path], folder: Path) -> list[str]:
    batch = [] if name == "evaluate" else ["--data.batch", "8" if world_size == 4 else "6"]
    return [*KINDS[name].words(shards[name], folder), *batch]


def finish(name: str, world_size: int, options: list[str]) -> None:
    """Run a job to its end on forked ranks, which need not import torch again and can have no data workers."""
    alone = ["--run.world_size", str(world_size), "--data.workers", "0"]
    on_ranks(world_size, KINDS[name].main, [*options, *alone], timeout=PATIENCE)


@pytest.mark.parametrize(
    ("name", "world_size", "count"),
    [
        ("evaluate", 2, 4),
        ("evaluate", 4, 1),
        ("meta", 2, 4),
        ("meta", 4, 1),
        ("base", 2, 2),
        ("pretrain", 2, 4),
        ("pretrain", 3, 2),
        ("pretrain", 4, 2),
    ],
)
def test_killed_at_random_moments(tmp_path, shards, undisturbed, name, world_size, count):
    kind, cut = KINDS[name], tmp_path / "cut"
    options = words(name, world_size, shards, cut)
    for moment in moments(kind, world_size, count, random.Random(f"{name} {world_size}")):
        print(f"{name} on {world_size} ranks, killed at (how far, seconds later, which process): {json.dumps(moment)}")
        killed(Launched(world_size, *options, launcher=kind.launcher), kind, cut, *moment)
    if world_size == 2:
        code, output = Launched(world_size, *options, launcher=kind.launcher).wait(PATIENCE)
        assert code == 0, output
    else:
        finish(name, world_size, options)
    kind.same(undisturbed(name, world_size), cut)
