"""Follows docs/own_method.md literally in a copy of the sources: the method trains, is evaluated and is reported.

The processes that run the copy import this file, so it imports nothing of the sources itself.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.support.doc_pages import Page, words
from tests.support.places import ROOT
from tests.support.ranks import forked

PAGE = Page("docs/own_method.md")
FASTER = {  # options after those of the page
    "launch/meta_train.py": (
        "--method.backbone_weights null --method.size 33 --episodes.min_area 50 "
        "--optim.steps 2 --validate.every 2 --validate.episodes 2"
    ).split(),
    "launch/evaluate.py": "--eval.episodes 6 --eval.seeds [0] --eval.min_area 50".split(),
}


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the sources with the files and lines that the page adds."""
    for room in ("configs", "fss", "launch", "shards"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    [code] = [block.text for block in PAGE.blocks if block.language == "python"]
    [recipe] = [block.text for block in PAGE.blocks if block.language == "yaml"]
    (tmp_path / "fss/methods/projected.py").write_text(code + "\n")
    (tmp_path / "configs/meta/projected.yaml").write_text(recipe)
    table = tmp_path / "fss/methods/__init__.py"
    for block in PAGE.blocks:
        if block.language == "diff":
            table.write_text(added(table.read_text(), block.text))
    return tmp_path


def added(text: str, diff: str) -> str:
    """`text` with the lines that a `diff` of one place adds to it."""
    before = "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[0] == " ")
    after = "".join(f"{line[1:]}\n" for line in diff.splitlines())
    assert text.count(before) == 1, f"the page's diff does not fit:\n{diff}"
    return text.replace(before, after)


@pytest.fixture
def inside(checkout) -> Iterator[ProcessPoolExecutor]:
    """A process that imports the copy and forks ranks."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=enter, initargs=(checkout,)) as pool:
        yield pool


def enter(checkout: Path) -> None:
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    importlib.import_module("fss.jobs.fit")  # once for all ranks


def make_data(folder: Path) -> None:
    from shards.synthetic import synthetic
    from shards.write import pack

    pack(synthetic(60), folder)


def launched(launcher: str, options: list[str]) -> None:
    module = importlib.import_module(launcher.removesuffix(".py").replace("/", "."))
    assert module.__file__ == str(Path.cwd() / launcher)
    assert module.main(options) == 0


def test_a_method_written_by_the_page(checkout, inside):
    inside.submit(make_data, Path("shards_of_test")).result()
    for code in PAGE.commands:
        [command] = words(code.text)
        place = next(i for i, word in enumerate(command) if word.startswith("launch/"))
        launcher, *options = command[place:]
        ranks = int(options[options.index("--run.world_size") + 1]) if "--run.world_size" in options else 1
        if launcher in FASTER:
            options += [
                *FASTER[launcher],
                *"--data.shards shards_of_test --data.workers 0 --log.wandb off".split(),
            ]
        options = [word for word in options if word != "runs/demo/evaluation"]  # no demo was run here
        inside.submit(forked, ranks, launched, (launcher, options), 240).result()

    [header] = (json.loads(line) for line in (checkout / "runs/projected_evaluation/environment.jsonl").open())
    assert header["world_size"] == 2
    [table] = json.loads((checkout / "runs/comparison/report.json").read_text())["tables"]
    assert [row[0] for row in table["rows"]] == ["projected"]
