"""The weights that a run began with, and the names under which trackers know them: method and digest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fss.compat import current_options
from fss.nn.exports import read_header


def weights_of(config: Mapping[str, Any]) -> dict[str, Path]:
    """Option -> file of weights that a job of this nested configuration begins with.

    The weights of an evaluation contain what its method was trained from, so they are the only entry then.
    """
    if config.get("weights"):
        return {"weights": Path(config["weights"])}
    options = current_options(
        {
            f"{group}.{name}": value
            for group, values in config.items()
            if isinstance(values, Mapping)
            for name, value in values.items()
        }
    )
    named = {key: value for key, value in options.items() if key.startswith("method.") and key.endswith("_weights")}
    named["run.init_from"] = options.get("run.init_from")
    return {key: Path(value) for key, value in named.items() if value}


def inputs(config: Mapping[str, Any]) -> dict[str, Path]:
    """The entries of `weights_of` that are exports of this project; of published weights only the path is known."""
    return {key: path for key, path in weights_of(config).items() if is_export(path)}


def is_export(path: Path) -> bool:
    """Return whether a run of this project wrote this file of weights; False if the file no longer exists."""
    return path.suffix == ".safetensors" and path.is_file() and read_header(path).method is not None


def name_of(path: Path) -> str:
    """METHOD-DIGEST for weights, evaluation-DIGEST for results: equal for equal files, in any folder."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return f"{read_header(path).method if is_export(path) else 'evaluation'}-{digest}"
