"""Readings of a configuration that all jobs share."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fss.distributed.runtime import RuntimeConfig
from fss.errors import ConfigError


def run_folder(config: RuntimeConfig) -> Path:
    """The run directory. Raises ConfigError if there is none; `fss.config.parse` always sets one."""
    if config.dir is None:
        raise ConfigError("run.dir is null: give the folder of the run")
    return Path(config.dir)


def config_dict(job: Any) -> dict[str, Any]:
    """The options of a job, a dataclass of groups, as nested dicts."""
    return asdict(job)
