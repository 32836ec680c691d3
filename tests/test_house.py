"""The house rules that can be read from the source: who may import whom."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import pytest

from tests.support.imports import imports, module_name, nodes, package_of, sources, within

SOURCES = sources("fss", "shards", "launch", "bench")
OURS = {"fss", "shards", "launch", "tests"}

# A package of others -> the modules and packages that may import it; no other file may.
ONLY_IN = {
    "accelerate": {"fss.distributed.context"},
    "torch.distributed": {
        "fss.distributed.context",
        "fss.distributed.host_collectives",
        "fss.distributed.process_group",
    },
    "wandb": {"fss.tracking.wandb_tracker"},
    "wandb_workspaces": {"fss.tracking.dashboard"},
    "torch.utils.tensorboard": {"fss.tracking.tensorboard_tracker"},
    "jsonargparse": {"fss.config"},
    "gradio": {"fss.inference.web_page"},
    "matplotlib": {"fss.report"},
    "webdataset": {"shards"},
    "pycocotools": {"shards.sources"},
    "segment_anything": {"fss.nn.sam", "fss.nn.point_decoder"},
    "timm": {"fss.nn"},
    "deepspeed": set(),
    "pickle.load": set(),
    "pickle.loads": set(),
}

# A package -> what it may import of ours, beside itself. From the bottom to the top.
MAY_IMPORT = {
    "shards": set(),
    "fss.errors": set(),
    "fss.collectives": set(),
    "fss.numerics": set(),
    "fss.provenance": {"fss.numerics"},
    "fss.compat": {"fss.errors"},
    "fss.datasets": {"fss.errors", "shards"},
    "fss.data": {"fss.datasets", "fss.errors", "shards"},
    "fss.nn": {"fss.errors", "fss.collectives", "shards.format"},
    "fss.methods": {"fss.nn", "fss.errors", "fss.collectives", "fss.data.batch"},
    "fss.distributed": {
        "fss.methods.base",
        "fss.nn.transfer",
        "fss.errors",
        "fss.collectives",
        "fss.provenance",
        "fss.numerics",
        "shards.format",
    },
    "fss.tracking": {"fss.errors", "fss.compat", "fss.provenance", "fss.nn.exports", "shards.format"},
    "fss.evaluate": {
        "fss.distributed",
        "fss.methods",
        "fss.nn.exports",
        "fss.nn.transfer",
        "fss.data",
        "fss.datasets",
        "fss.errors",
        "fss.collectives",
        "fss.compat",
        "shards",
    },
    "fss.train": {
        "fss.evaluate",
        "fss.tracking",
        "fss.distributed",
        "fss.methods",
        "fss.nn",
        "fss.data",
        "fss.datasets",
        "fss.errors",
        "fss.collectives",
        "fss.compat",
        "fss.provenance",
        "shards",
    },
    "fss.report": {
        "fss.collectives",
        "fss.train",
        "fss.evaluate",
        "fss.tracking",
        "fss.methods",
        "fss.nn.exports",
        "fss.data",
        "fss.datasets",
        "fss.errors",
        "fss.compat",
        "shards",
    },
    "fss.inference": {
        "fss.report",
        "fss.evaluate",
        "fss.methods",
        "fss.data",
        "fss.datasets",
        "fss.errors",
        "fss.numerics",
        "shards",
    },
    "fss.jobs": {
        "fss.report",
        "fss.train",
        "fss.evaluate",
        "fss.tracking",
        "fss.distributed",
        "fss.methods",
        "fss.nn",
        "fss.data",
        "fss.datasets",
        "fss.errors",
        "fss.compat",
        "fss.numerics",
        "fss.provenance",
        "shards",
    },
    "fss.config": {
        "fss.jobs",
        "fss.train",
        "fss.evaluate",
        "fss.tracking",
        "fss.distributed",
        "fss.methods",
        "fss.nn.exports",
        "fss.data",
        "fss.datasets",
        "fss.errors",
        "fss.compat",
    },
    "fss.command": {"fss.errors", "shards.format"},
    "fss": {"fss.inference.segmenter"},
    "launch": {
        "fss.command",
        "fss.config",
        "fss.jobs",
        "fss.inference",
        "fss.report",
        "fss.tracking",
        "fss.datasets",
        "fss.errors",
        "shards",
    },
    "bench": {"fss", "shards", "launch.report"},
}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_point_down(path):
    package = package_of(module_name(path))
    allowed = MAY_IMPORT[package]
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in imports(path)
        if within(name, OURS) and package_of(name) != package and not within(name, allowed)
    ]
    assert not wrong, f"{package} may import {sorted(allowed)}"


def test_the_table_lists_the_packages_that_there_are():
    assert {package_of(module_name(path)) for path in SOURCES} == set(MAY_IMPORT)


def test_no_circle_between_packages():
    """Imports inside functions count, too."""
    graph = defaultdict(set)
    lines = defaultdict(list)
    for path in SOURCES:
        package = package_of(module_name(path))
        for line, name in imports(path):
            other = package_of(name)
            if within(name, OURS) and other != package:
                graph[package].add(other)
                lines[other, package].append(f"{path}:{line} imports {name}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
        edges = [lines[pair][0] for pair in pairwise(circle)]
        raise AssertionError("packages import each other:\n" + "\n".join(edges)) from None


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_of_others_stay_in_their_rooms(package):
    wrong = [
        f"{path}:{line}"
        for path in SOURCES
        if path.parts[0] != "bench" and not within(module_name(path), ONLY_IN[package])
        for line, name in imports(path)
        if within(name, {package})
    ]
    assert not wrong


def test_no_test_module_is_imported_by_another():
    """What several of them need lives in tests/support."""
    modules = sources("tests")
    tests = {module_name(path) for path in modules if path.name.startswith("test_") or path.name == "conftest.py"}
    wrong = [f"{path}:{line} imports {name}" for path in modules for line, name in imports(path) if within(name, tests)]
    assert not wrong


def test_nothing_is_evaluated_or_unpickled():
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                safe = {"weights_only": True, "allow_pickle": False}
                given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                assert safe.items() & given.items(), f"{path}:{node.lineno} may unpickle"
