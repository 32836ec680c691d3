"""Names of earlier versions that are still accepted: options, log keys, fields of files.

This module is the only place that knows them. Whatever reads a command line, a configuration or a file of an earlier
version translates it here, and handles only the names of today from there on.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fss.errors import ConfigError

OPTIONS = {
    "run.world": "run.world_size",
    "run.start_from": "run.init_from",
    "optim.lr_batch": "optim.reference_batch_size",
    "checkpoint.keep": "checkpoint.keep_last",
    "augment.keep": "augment.min_foreground",
    "validate.share": "validate.fraction",
}
"""Earlier name of an option, as typed after `--` -> its name today."""

ADDED_OPTIONS: dict[str, tuple[str, Any]] = {
    "optim.optimizer": ("optim.", "sgd"),
    "optim.betas": ("optim.", [0.9, 0.999]),
    "optim.clip_norm": ("optim.", None),
    "run.deterministic": ("run.", False),
    "method.shuffle_among": ("method.bn_split", "all"),
}
"""Option that earlier versions did not have -> how options of the runs begin that it concerns, and the value that does
what those versions did."""

CHECKPOINT = {"world": "world_size"}
"""Earlier name of a field of a checkpoint's state.json -> its name today."""
ENVIRONMENT = {"world": "world_size", "tf32": "tf32_cudnn"}
"""The same of a line of environment.jsonl."""
EPISODE = {"remarks": "flags"}
"""The same of the record of an episode."""
RESULTS = {"remarks": "flags"}
"""The same of results.json."""
REPORT = {"cautions": "caveats", "ran": "summary"}
"""The same of report.json."""
CELL = {"variant": "ablation"}
"""The same of the cell in report.json."""
LOG_KEYS = {
    "knn/chance": "knn/chance_level",
    "chance/loss": "chance_level/loss",
    "chance/loss/global": "chance_level/loss/global",
    "chance/loss/local": "chance_level/loss/local",
    "chance/loss/*": "chance_level/loss/*",
}
"""Earlier key of a logged value -> its key today; a key with a * is one of a chart."""

_reported: set[str] = set()
"""Earlier names of options that this process has reported."""


def current_fields(record: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a record under the names of today; the values are unchanged."""
    return {renamed.get(name, name): value for name, value in record.items()}


def current_log_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl under the keys of today."""
    return current_fields(row, LOG_KEYS)


def current_options(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The flat identity of a run, option -> value, under the names of today.

    Options that were added since are there with the value that does what the run did.
    """
    added = {
        option: value
        for option, (beginning, value) in ADDED_OPTIONS.items()
        if any(other.startswith(beginning) for other in identity)
    }
    return added | current_fields(identity, OPTIONS)


def current_arguments(words: Sequence[str]) -> list[str]:
    """The words of a command line with the options' names of today; every earlier name is reported once on stderr.

    Raises ConfigError if an option is given under both names with different values.
    """
    renamed = []
    for word in words:
        option, equals, value = word.partition("=")
        if option.startswith("--") and (name := OPTIONS.get(option[2:])):
            _report(option[2:], name)
            word = f"--{name}{equals}{value}"
        renamed.append(word)
    for old, new in OPTIONS.items():
        earlier, today = values(words, f"--{old}"), values(words, f"--{new}")
        if earlier and today and _parsed(earlier[-1]) != _parsed(today[-1]):
            raise _both(old, new, earlier[-1], today[-1])
    return renamed


def current_configuration(tree: Any) -> Any:
    """A parsed YAML configuration, nested by group, under the options' names of today.

    Every earlier name is reported once on stderr. Raises ConfigError if an option is there under both names with
    different values.
    """
    if not isinstance(tree, dict):
        return tree
    renamed = {group: dict(options) if isinstance(options, dict) else options for group, options in tree.items()}
    for old, new in OPTIONS.items():
        if old in renamed:  # written flat, `group.option: value`
            _report(old, new)
            value = renamed.pop(old)
            if renamed.setdefault(new, value) != value:
                raise _both(old, new, value, renamed[new])
        group, _, name = old.partition(".")
        current_name = new.partition(".")[2]
        options = renamed.get(group)
        if not isinstance(options, dict) or name not in options:
            continue
        _report(old, new)
        value = options.pop(name)
        if options.setdefault(current_name, value) != value:
            raise _both(old, new, value, options[current_name])
    return renamed


def values(words: Sequence[str], option: str) -> list[str]:
    """All values of `option` on a command line, in order, given as `option value` or `option=value`."""
    pairs = ((word.partition("="), after) for word, after in zip(words, [*words[1:], ""], strict=False))
    return [value if equals else after for (name, equals, value), after in pairs if name == option]


def _parsed(value: str) -> Any:
    """The value of a word of a command line; the word itself if it is not YAML."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _report(old: str, new: str) -> None:
    """Print that an option has a new name: once a name, on rank 0 alone."""
    if old not in _reported and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(f"note: option {old} is now called {new}", file=sys.stderr)
    _reported.add(old)


def _both(old: str, new: str, earlier: Any, today: Any) -> ConfigError:
    return ConfigError(
        f"{new} is given twice, as {today} and under its earlier name {old} as {earlier}: leave {old} out"
    )
