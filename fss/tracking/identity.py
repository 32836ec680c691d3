"""The identity of a run: everything that decides its result and must be equal when it is resumed."""

import hashlib
from collections.abc import Mapping
from typing import Any

from fss.errors import WeightsError

CONDITIONS = "environment."
"""Prefix of the fields of an evaluation's identity that are no options. Records of earlier versions lack them."""

# Options that may change between a run and its resume.
OPERATIONAL = (
    "run.dir",
    "run.world_size",
    "run.device",
    "run.timeout_minutes",
    "run.check_every",
    "run.threads",
    "run.report",
    "data.shards",
    "data.bad_fraction",
    "data.workers",
    "data.prefetch",
    "data.cache",
    "log",
    "checkpoint",
    "probe",
    "validate.shards",
)


def identity_of(config: Mapping[str, Any], manifest: str) -> dict[str, Any]:
    """The part of a nested config that decides the result, flat, with the digest of the shard manifest.

    Files of weights (`weights`, and options of the method that end in it) count by their content, not by their path.
    Raises WeightsError if one cannot be read.
    """
    flat: dict[str, Any] = {"data.manifest": manifest}

    def walk(prefix: str, node: Mapping[str, Any]) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in OPERATIONAL:
                continue
            if isinstance(value, Mapping):
                walk(f"{key}.", value)
            elif value is not None and key.split(".")[0] in ("method", "weights") and key.endswith("weights"):
                flat[key] = f"sha256 {_file_digest(key, value)}"
            else:
                flat[key] = value

    walk("", config)
    return flat


def _file_digest(key: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise WeightsError(f"{key} {path} cannot be read ({error.strerror}): check the path") from None
