"""The form of docstrings: each public thing has one, which begins with a verb or a noun and names shapes and errors."""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.support.imports import nodes, sources

Function = ast.FunctionDef | ast.AsyncFunctionDef
OPENING = re.compile(r"(What|Which|How|Whether|Where|It)\b")
STATE = re.compile(r"(dict|Mapping)\[str, Tensor\]")  # tensors by name, of as many shapes
ARRAY = re.compile(r"\b(Tensor|ndarray|NDArray)\b")
SHAPE = re.compile(r"\[[^\[\]]+\]|\bscalars?\b|\bany shape\b")  # such as [B, C, H, W]
RAISES = re.compile(r"\bRaises? [A-Z]\w+Error\b")  # or "Raise ConfigError unless ..." as its first words
OF_OTHERS = {  # documented methods of classes that are not ours
    "Module": {"forward", "train", "extra_repr"},
    "Function": {"forward", "backward"},
    "Thread": {"run"},
    "Action": {"format_usage"},
}


@dataclass(frozen=True)
class Documented:
    """A public module, class, function or method of a file."""

    path: Path
    node: ast.Module | ast.ClassDef | Function
    owner: ast.ClassDef | None = None
    """Of a method: its class."""

    def __str__(self) -> str:
        names = [part.name for part in (self.owner, self.node) if part and not isinstance(part, ast.Module)]
        return f"{self.path}:{getattr(self.node, 'lineno', 1)} {'.'.join(names)}".rstrip()

    @property
    def text(self) -> str:
        """The docstring, of a constructor and of `forward` with the class's; "" if there is none."""
        own = ast.get_docstring(self.node) or ""
        if self.owner and isinstance(self.node, Function) and self.node.name in ("__init__", "forward"):
            own += "\n" + (ast.get_docstring(self.owner) or "")
        return own

    @property
    def overrides(self) -> bool:
        """Whether the method's contract stands at a base class, or at the class that its class's docstring names."""
        if self.owner is None or not isinstance(self.node, Function):
            return False
        return any(self.node.name in documented_methods(base) for base in contracts(self.owner))


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class of ours by its name."""
    found = defaultdict(list)
    for path in sources("fss", "shards", "launch"):
        for node in nodes(path):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(node)
    return found


def contracts(owner: ast.ClassDef) -> set[str]:
    """Names of the base classes of a class, and of the protocols that its docstring names in backticks."""
    bases = {re.split(r"[\[(]", ast.unparse(base))[0].split(".")[-1] for base in owner.bases}
    return bases | (set(re.findall(r"`(\w+)`", ast.get_docstring(owner) or "")) & classes().keys() - {owner.name})


def documented_methods(name: str) -> set[str]:
    """Methods that a class of this name documents, inherited ones too."""
    methods = set(OF_OTHERS.get(name, ()))
    for owner in classes().get(name, ()):
        methods |= {node.name for node in owner.body if isinstance(node, Function) and ast.get_docstring(node)}
        for base in contracts(owner):
            methods |= documented_methods(base)
    return methods


def documented(path: Path) -> Iterator[Documented]:
    """The public things of a file; of a class also its constructor."""
    module = nodes(path)[0]
    assert isinstance(module, ast.Module)
    yield Documented(path, module)
    for node in module.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_") and not is_declaration(node):
            yield Documented(path, node)
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, Function) and (method.name[0] != "_" or method.name == "__init__"):
                        if not is_declaration(method, node):
                            yield Documented(path, method, node)


def is_declaration(node: Function | ast.ClassDef, owner: ast.ClassDef | None = None) -> bool:
    """Whether this is an overload, a setter, or a property without a body in a protocol: the form of a field."""
    decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    field = owner is not None and "Protocol" in contracts(owner) and ast.unparse(node.body) == "..."
    return bool({"overload", "setter"} & decorators) or ("property" in decorators and field)


def missing(thing: Documented) -> bool:
    return not thing.text and not thing.overrides


def opens_as_a_clause(thing: Documented) -> bool:
    return bool(OPENING.match(ast.get_docstring(thing.node) or ""))


def lacks_a_shape(thing: Documented) -> bool:
    if not isinstance(thing.node, Function) or thing.node.name == "__init__" or thing.overrides:
        return False
    given = thing.node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    annotations = [arg.annotation for arg in every if arg] + [thing.node.returns]
    arrays = any(ARRAY.search(STATE.sub("", ast.unparse(annotation))) for annotation in annotations if annotation)
    return arrays and not SHAPE.search(thing.text)


def hides_an_error(thing: Documented) -> bool:
    if not isinstance(thing.node, Function) or thing.overrides:
        return False
    return any(name in user_errors() for name in raised(thing.node)) and not RAISES.search(thing.text)


def raised(function: Function) -> set[str]:
    """Names of the exceptions that a function's own body raises."""
    names, inside = set(), list(function.body)
    while inside:
        node = inside.pop()
        if isinstance(node, Function | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            call = node.exc
            names.add(ast.unparse(call.func if isinstance(call, ast.Call) else call).split(".")[-1])
        inside += ast.iter_child_nodes(node)
    return names


@cache
def user_errors() -> set[str]:
    """UserError, ShardError and the classes that are made of them."""
    errors = {"UserError", "ShardError"}
    while more := {name for name, found in classes().items() if any(contracts(c) & errors for c in found)} - errors:
        errors |= more
    return errors


FORMS: dict[str, Callable[[Documented], bool]] = {
    "has no docstring": missing,
    "begins with What, Which, How, Whether, Where or It": opens_as_a_clause,
    "takes or returns an array and gives neither a shape in brackets nor the word scalar": lacks_a_shape,
    "raises an error that its docstring does not name after Raise or Raises": hides_an_error,
}


@pytest.mark.parametrize("form", FORMS)
def test_form_of_docstrings(form):
    things = [thing for path in sources("fss", "shards", "launch") for thing in documented(path)]
    assert len(things) > 1000
    wrong = [str(thing) for thing in things if FORMS[form](thing)]
    assert not wrong, f"{len(wrong)} of {len(things)}: each {form}:\n" + "\n".join(wrong)
