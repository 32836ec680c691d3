"""The table of methods: those of this package and, through entry points, those of other installed packages."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points

from fss.errors import ConfigError
from fss.methods.base import Method, MethodConfig

GROUP = "fss.methods"
"""The entry-point group; the name of an entry point is that of the method, its value `module:Class`."""

_log = logging.getLogger(__name__)


class MethodRegistry(MutableMapping[str, type[Method]]):
    """Name -> class of a method.

    Entry points are looked up only if the table is listed or a name is asked for that is not built in. A listing leaves
    out entry points that cannot be used and logs one sentence about each of them, so that a broken package stops no
    other method. Asking for such a name raises ConfigError with that sentence.
    """

    def __init__(self, builtin: Mapping[str, type[Method]]) -> None:
        self._builtin = frozenset(builtin)
        self._methods = dict(builtin)
        self._found: dict[str, list[EntryPoint]] | None = None
        self._reported: set[str] = set()

    def __getitem__(self, name: str) -> type[Method]:
        """Return the class of a method.

        Raises KeyError if nothing has this name, ConfigError if a package has it but its entry point cannot be used.
        """
        if name not in self._methods:
            self._methods[name] = _load(name, self._entry_points[name])
        return self._methods[name]

    def __setitem__(self, name: str, method: type[Method]) -> None:
        self._methods[name] = method

    def __delitem__(self, name: str) -> None:
        del self._methods[name]

    def __contains__(self, name: object) -> bool:
        """Return whether a method or an entry point has this name; nothing is loaded."""
        return name in self._methods or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        for name, points in self._entry_points.items():
            if name in self._builtin:
                self._report(f"{_origin(points[0])} has the name of the built-in method {name}: rename it there")
                continue
            try:
                self[name]
            except ConfigError as error:
                self._report(str(error))
        return iter(list(self._methods))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        """Name -> the entry points that have it, looked up once."""
        if self._found is None:
            self._found = defaultdict(list)
            for point in entry_points(group=GROUP):
                self._found[point.name].append(point)
            self._found = dict(sorted(self._found.items()))
        return self._found

    def _report(self, sentence: str) -> None:
        """Log a sentence once, on rank 0 alone."""
        if sentence not in self._reported and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
            self._reported.add(sentence)
            _log.warning(sentence)


def _load(name: str, points: list[EntryPoint]) -> type[Method]:
    """Import the class of an entry point. Raises ConfigError if it cannot be used."""
    point, *others = points
    if others:
        raise ConfigError(
            f"{' and '.join(_origin(each) for each in points)} both name a method {name}: uninstall one of the packages"
        )
    try:
        method = point.load()
    except Exception as error:  # the import of somebody else's module may raise anything
        raise ConfigError(
            f"{_origin(point)} cannot be imported ({type(error).__name__}: {error}): mend or uninstall the package"
        ) from error
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"{_origin(point)} is no subclass of fss.methods.base.Method: let it name the method's class")
    config = getattr(method, "Config", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig) and is_dataclass(config)):
        raise ConfigError(
            f"{_origin(point)} has no Config, a dataclass that extends MethodConfig: add one to the class"
        )
    default = next(option.default for option in fields(config) if option.name == "name")
    if default != name:
        raise ConfigError(f"{_origin(point)} is called {name} but its Config.name is {default!r}: give both one name")
    return method


def _origin(point: EntryPoint) -> str:
    """Name an entry point and its package for a message."""
    package = point.dist.name if point.dist is not None else "an unknown package"
    return f"the entry point {point.value} of {package}"
