"""The identity of a run: everything that decides its result, and so must be equal when it is resumed."""

import hashlib

from fss.errors import WeightsError

# What may change between a run and its resume without making it another run.
OPERATIONAL = (
    "run.dir",
    "run.world_size",
    "run.device",
    "run.timeout_minutes",
    "run.check_every",
    "run.threads",
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


def identity_of(config: dict, manifest: str) -> dict:
    """The part of a nested config that decides the result, flat, with the digest of the shard manifest.

    Files of weights (`weights`, and options of the method that end in it) count by what they hold, not by their place.
    Raises WeightsError where one cannot be read.
    """
    flat = {"data.manifest": manifest}

    def walk(prefix: str, node: dict) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in OPERATIONAL:
                continue
            if isinstance(value, dict):
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
