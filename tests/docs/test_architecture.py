"""docs/architecture.md names files and places that exist, in rows whose files belong together."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.doc_pages import Page
from tests.support.imports import imports, module_name, nodes, package_of, sources
from tests.support.places import ROOT

PAGE = Page("docs/architecture.md")
SPANS = re.compile(r"`([^`]+)`")
PATH = re.compile(r"\w+/[\w/.]*|\w+\.md")
NAMES = re.compile(r"`(\w+/[\w/.]*)`(?:\s*\(|,\s*)((?:`[\w.]+`(?:,\s*)?)+)\)")  # `path` (`name`), or (`path`, `name`)
NEW = re.compile(r"\bNAME\b")


@dataclass(frozen=True)
class Place:
    """A file that the page names, and the names inside it that stand in brackets behind it."""

    path: Path
    names: tuple[str, ...]


def places(text: str) -> list[Place]:
    """The files of a row or a step with the names in their brackets; new files are left out."""
    names: dict[str, list[str]] = {path: [] for path in SPANS.findall(text) if PATH.fullmatch(path)}
    for path, found in NAMES.findall(text):
        names[path] += SPANS.findall(found)
    return [Place(Path(path), tuple(found)) for path, found in names.items() if not NEW.search(path)]


def section(title: str) -> list[str]:
    """The lines of the page below a heading that begins so."""
    lines = PAGE.lines
    start = next(number for number, line in enumerate(lines) if line.startswith(f"## {title}"))
    end = next((n for n, line in enumerate(lines[start + 1 :], start + 1) if line.startswith("## ")), len(lines))
    return lines[start + 1 : end]


CHANGES = {
    cells[1].strip(): cells[2]
    for line in section("I want to change")
    if line.startswith("| ") and len(cells := line.split("|")) == 4 and "I want to" not in cells[1]
}
WAYS = [line.removeprefix("## ") for line in PAGE.lines if line.startswith("## From a ")]


def steps(way: str) -> list[str]:
    """The numbered steps of a way."""
    return re.split(r"^\d+\. ", "\n".join(section(way)), flags=re.M)[1:]


def defined(path: Path) -> set[str]:
    """Names that a Python file defines, those inside classes with the class in front."""
    names = set()

    def add(body: list[ast.stmt], prefix: str = "") -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{node.name}.")
            if isinstance(node, ast.If):
                add([*node.body, *node.orelse], prefix)
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    module = nodes(path)[0]
    assert isinstance(module, ast.Module)
    add(module.body)
    return names


def linked(a: Place, b: Place) -> bool:
    """Whether a's file imports b's, one of b's names from the package of b, or names b's module in its docstrings."""
    if a.path.suffix != ".py" or b.path.suffix != ".py":
        return True
    module = module_name(b.path)
    own = [name for _, name in imports(a.path)]
    if any(name == module or name.startswith(f"{module}.") for name in own):
        return True
    short = {name.split(".")[0] for name in b.names}
    parent = module.rpartition(".")[0]
    package = ROOT / b.path.parent / "__init__.py"
    exported = [name for _, name in imports(package.relative_to(ROOT))] if package.exists() else []
    if any(name == f"{parent}.{name_of_b}" for name in own for name_of_b in short):
        return True
    if a.path.parent != b.path.parent and any(name.startswith(f"{module}.") for name in exported):
        if any(name.rpartition(".")[0] == parent for name in own):  # by way of the package
            return True
    return f"`{module}." in (ROOT / a.path).read_text()


def parts(found: list[Place]) -> list[set[Path]]:
    """The files in groups; those of a group import each other directly or by way of others of the group."""
    groups: list[set[Path]] = []
    for place in {place.path: place for place in found}.values():
        near = [g for g in groups if any(linked(place, p) or linked(p, place) for p in found if p.path in g)]
        groups = [g for g in groups if g not in near] + [{place.path}.union(*near)]
    return groups


@pytest.mark.parametrize("text", [*CHANGES.values(), *(s for way in WAYS for s in steps(way))])
def test_files_and_names_exist(text):
    for place in places(text):
        assert (ROOT / place.path).exists(), f"there is no {place.path}"
        if place.path.suffix == ".py":
            unknown = {name for name in place.names if name not in defined(place.path)}
            assert not unknown, f"{place.path} does not define {unknown}"


def test_new_files_have_a_folder():
    new = [
        word for text in CHANGES.values() for word in SPANS.findall(text) if PATH.fullmatch(word) and NEW.search(word)
    ]
    assert new
    assert not [word for word in new if not (ROOT / word).parent.is_dir()]


@pytest.mark.parametrize("change", CHANGES)
def test_files_of_a_change_belong_together(change):
    found = [place for place in places(CHANGES[change]) if place.path.suffix == ".py"]
    assert found
    assert len(parts(found)) == 1, f"no import leads from one to the other: {parts(found)}"


@pytest.mark.parametrize("way", WAYS)
def test_steps_of_a_way_belong_together(way):
    found = [place for step in steps(way) for place in places(step) if place.path.suffix == ".py"]
    assert 5 <= len(steps(way)) <= 8 and all(places(step) for step in steps(way))
    assert len(parts(found)) == 1, f"no import leads from one to the other: {parts(found)}"


def test_there_are_enough_rows():
    assert len(CHANGES) >= 13 and len(WAYS) == 3


def test_packages_import_from_lines_below_their_own():
    """The drawing against every import of the source."""
    [drawing] = [block.text for block in PAGE.blocks if block.language == "text"]
    level = {}
    for number, line in enumerate(drawing.splitlines()):
        for word in re.findall(r"(?<![\w/])(?:launch|shards|fss)/(?:\w+(?:/|\.py))?", line):
            level[word.removesuffix(".py").strip("/").replace("/", ".")] = number
    wrong = []
    for path in sources("fss", "shards", "launch"):
        package = package_of(module_name(path))
        for line, name in imports(path):
            other = package_of(name)
            if other in level and package != "fss" and other != package and level[other] <= level[package]:
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong
    assert {package_of(module_name(path)) for path in sources("fss", "shards", "launch")} - {"fss"} == set(level)
