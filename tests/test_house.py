"""The house rules that can be read off the source: who may import whom."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.support.places import ROOT

ROOMS = ("fss", "shards", "launch", "bench")
SOURCES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))

# Where a package may be imported; nowhere else.
ONLY_IN = {
    "accelerate": {"fss/distributed/context.py"},
    "torch.distributed": {"fss/distributed/context.py", "fss/distributed/process_group.py"},
    "wandb": {"fss/tracking/wandb_tracker.py"},
    "wandb_workspaces": {"fss/tracking/dashboard.py"},
    "jsonargparse": {"fss/config.py"},
    "gradio": {"fss/inference/web_page.py"},
    "segment_anything": {"fss/nn/sam.py"},
    "timm": {"fss/nn/dino.py"},
    "deepspeed": set(),
    "pickle.load": set(),
    "pickle.loads": set(),
}
# What a room may import of ours. A room is the longest prefix that fits.
MAY_IMPORT = {
    "shards": {"shards"},
    "fss/errors.py": set(),
    "fss/nn": {"fss.nn", "fss.errors"},
    "fss/data": {"fss.data", "fss.errors", "shards"},
    "fss/methods": {"fss.methods", "fss.nn", "fss.errors", "fss.data.batch"},
    "fss/engine": {"fss.engine", "fss.methods", "fss.nn", "fss.data", "fss.errors", "shards"},
    "fss/command.py": {"fss.errors", "shards"},
    "fss/config.py": {"fss.engine", "fss.methods", "fss.data", "fss.errors", "shards"},
    "fss/__init__.py": {"fss.inference.segmenter"},
    "launch": {"fss.command", "fss.config", "fss.engine", "fss.errors", "shards"},
    "bench": {"bench", "fss", "shards", "launch.report", "plain_moco"},
}


@cache
def parsed(path: Path) -> list[ast.AST]:
    """Every node of the file's source."""
    return list(ast.walk(ast.parse((ROOT / path).read_text())))


def imports(path: Path) -> list[str]:
    """Every module or name that the file imports, dotted, also inside functions."""
    found = []
    for node in parsed(path):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_point_down(path):
    room = max((r for r in MAY_IMPORT if str(path).startswith(r)), key=len)
    ours = {name for name in imports(path) if within(name, {"fss", "shards", "launch", "tests"})}
    wrong = {name for name in ours if not within(name, MAY_IMPORT[room])}
    assert not wrong, f"{path} may import {sorted(MAY_IMPORT[room])}"


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_that_live_in_one_file(package):
    places = {str(path) for path in SOURCES if any(within(name, {package}) for name in imports(path))}
    assert places <= ONLY_IN[package]


def test_nothing_is_evaluated_or_unpickled():
    for path in SOURCES:
        for node in parsed(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                safe = {"weights_only": True, "allow_pickle": False}
                given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                assert safe.items() & given.items(), f"{path}:{node.lineno} may unpickle"
