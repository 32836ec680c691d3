"""Names of earlier versions that are still accepted: options, log keys, fields of files.

This module is the only place that knows them. Everything that reads a file of an earlier version passes it through
`current_fields`, `current_options` or `current_log_keys`, and from there on handles the names of today alone.
"""

import sys
from collections.abc import Mapping
from typing import Any

OPTIONS = {
    "run.world": "run.world_size",
    "run.start_from": "run.init_from",
    "optim.lr_batch": "optim.reference_batch_size",
    "checkpoint.keep": "checkpoint.keep_last",
    "augment.keep": "augment.min_foreground",
    "validate.share": "validate.fraction",
}
"""Earlier name of an option, as typed after `--` -> its name today."""

ADDED_OPTIONS: dict[str, Any] = {
    "optim.optimizer": "sgd",
    "optim.betas": [0.9, 0.999],
    "optim.clip_norm": None,
}
"""Option that earlier versions did not have, in a group that they had -> the value that does what they did."""

CHECKPOINT = {"world": "world_size"}
ENVIRONMENT = {"world": "world_size"}
EPISODE = {"remarks": "flags"}
RESULTS = {"remarks": "flags"}
REPORT = {"cautions": "caveats", "ran": "summary"}
CELL = {"variant": "ablation"}
"""For each kind of file: earlier name of a field -> its name today."""

LOG_KEYS = {
    "knn/chance": "knn/chance_level",
    "chance/loss": "chance_level/loss",
    "chance/loss/global": "chance_level/loss/global",
    "chance/loss/local": "chance_level/loss/local",
    "chance/loss/*": "chance_level/loss/*",
}
"""Earlier key of a logged value -> its key today; a key with a * is one of a chart."""


def current_fields(record: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a record under the names of today; values stay as they are."""
    return {renamed.get(name, name): value for name, value in record.items()}


def current_options(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The flat identity of a run ({option: value}) under the names of today, with options that it did not have.

    An option is added only to a run that has others of its group: an evaluation has no `optim`.
    """
    groups = {name.partition(".")[0] for name in identity}
    added = {name: value for name, value in ADDED_OPTIONS.items() if name.partition(".")[0] in groups}
    return added | current_fields(identity, OPTIONS)


def current_log_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl under the keys of today."""
    return current_fields(row, LOG_KEYS)


def current_argument(word: str) -> str:
    """A word of a command line with the option's name of today; an earlier name is reported on stderr."""
    option, equals, value = word.partition("=")
    if option.startswith("--") and (name := OPTIONS.get(option[2:])):
        _report(option[2:], name)
        return f"--{name}{equals}{value}"
    return word


def current_configuration(tree: Any) -> Any:
    """A parsed YAML configuration, nested by group, with the options' names of today; earlier names are reported."""
    if not isinstance(tree, dict):
        return tree
    out = {group: dict(values) if isinstance(values, dict) else values for group, values in tree.items()}
    for old, new in OPTIONS.items():
        group, _, name = old.partition(".")
        if isinstance(out.get(group), dict) and name in out[group]:
            _report(old, new)
            out[group][new.partition(".")[2]] = out[group].pop(name)
    return out


def _report(old: str, new: str) -> None:
    print(f"note: option {old} is now called {new}", file=sys.stderr)
