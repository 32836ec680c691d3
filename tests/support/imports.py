"""Which module imports which, read from the source: nothing is imported to find out."""

import ast
from functools import cache
from pathlib import Path

from tests.support.places import ROOT


def sources(*folders: str) -> list[Path]:
    """The Python files below folders of the checkout, relative to its root, sorted."""
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file's source; `path` is relative to the root of the checkout."""
    return tuple(ast.walk(ast.parse((ROOT / path).read_text())))


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, also inside functions; of `from a import b`, `a.b`."""
    names = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return names


def module_name(path: Path) -> str:
    """The dotted name of a file; of a package's `__init__.py`, the package's."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The package that a dotted name belongs to: `fss.X` inside of fss, else the first part."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "fss" else parts[0]


def within(name: str, places: set[str]) -> bool:
    """Whether a dotted name is one of `places` or lies below one."""
    return any(name == place or name.startswith(place + ".") for place in places)
