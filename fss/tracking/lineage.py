"""Which of our files a run began from, and the names by which viewers know them: of a method and a digest."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fss.nn.exports import read_header


def weights_of(config: Mapping[str, Any]) -> dict[str, Path]:
    """Option -> file of weights that a job of this nested config begins with.

    An evaluation's weights hold what its method was trained from, so they stand alone.
    """
    if config.get("weights"):
        return {"weights": Path(config["weights"])}
    named = {f"method.{key}": value for key, value in config["method"].items() if key.endswith("_weights")}
    named["run.init_from"] = config["run"].get("start_from")
    return {key: Path(value) for key, value in named.items() if value}


def inputs(config: Mapping[str, Any]) -> dict[str, Path]:
    """`weights_of`, of which only exports of ours: of published weights nothing is known but their path."""
    return {key: path for key, path in weights_of(config).items() if is_export(path)}


def is_export(path: Path) -> bool:
    """Whether this is a file of weights that a run of ours wrote; a file that has gone is none."""
    return path.suffix == ".safetensors" and path.is_file() and read_header(path).method is not None


def name_of(path: Path) -> str:
    """METHOD-DIGEST of weights, evaluation-DIGEST of results: equal for equal files, wherever they lie."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return f"{read_header(path).method if is_export(path) else 'evaluation'}-{digest}"
