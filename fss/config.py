"""The configuration: one typed schema, composed of what each room declares. The only file that imports jsonargparse."""

import difflib
import errno
import functools
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from fss.data.loader import DataConfig
from fss.engine.checkpoint import CheckpointConfig
from fss.engine.log import LogConfig
from fss.engine.optim import OptimConfig
from fss.engine.probe import ProbeConfig
from fss.engine.run import RunConfig
from fss.errors import ConfigError, UserError
from fss.methods.prior_config import PriorConfig
from shards.format import ShardError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
Job = TypeVar("Job")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """Pretrain QGNet's prior extractor."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: PriorConfig = field(default_factory=PriorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


def parse(schema: type[Job], argv: list[str] | None, *, prog: str, default: str) -> Job:
    """The job that `argv` asks for: the schema's defaults, then YAML files, then options, later over earlier.

    default: the file under configs/ that stands in where argv names no --config.
    Raises ConfigError, one sentence with key, value and remedy; exits with 0 on --help and --print_config.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not any(word == "--config" or word.startswith("--config=") for word in argv):
        argv = ["--config", str(CONFIGS / default), *argv]
    parser = ArgumentParser(
        prog=prog,
        description=f"{schema.__doc__} Without --config: configs/{default}.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options; may be repeated.")
    parser.add_class_arguments(schema, nested_key=None)
    try:
        namespace = parser.parse_args(argv)
        files = namespace.pop("config")
        if namespace.run.dir is None:
            namespace.run.dir = f"runs/{Path(str(files[-1])).stem}"
        return schema(**vars(parser.instantiate(namespace)))
    except (ArgumentError, TypeError) as error:
        raise ConfigError(_sentence(str(error), _keys(parser))) from None


def snapshot(job: object) -> str:
    """The resolved configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(asdict(job), sort_keys=False)


def command(main: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int]:
    """Wrap a launcher's ``main(argv)``: a user's error is one line on stderr and exit code 2, not a traceback."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except (UserError, ShardError) as error:
            text = str(error)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text = f"the disk is full ({error}): free some space and run the same command again"
        print(f"error: {text}", file=sys.stderr, flush=True)
        return 2

    return wrapped


def _keys(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if "." in action.dest]


def _sentence(message: str, keys: list[str]) -> str:
    """jsonargparse's complaint as one sentence with key, value and remedy."""
    message = re.sub(r"\s+", " ", message).strip().rstrip(".")
    if found := re.match(r'Parser key "(.+?)": (.*?)\.? Got value: (.*)$', message):
        key, wanted, value = found.groups()
        wanted = re.sub(r"<class '(.+?)'>", r"\1", wanted).replace("typing.", "")
        return f"{key} cannot be {value!r}: {wanted[0].lower()}{wanted[1:]}"
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        unknown = found[1].split("=")[0].lstrip("-")
    elif found := re.match(r"Group '(.+?)' does not accept option '(.+?)'", message):
        unknown = f"{found[1]}.{found[2]}"
    elif found := re.match(r"Option '(.+?)' is not accepted", message):
        unknown = found[1]
    else:
        return f"{message} (see --help)"
    leaves = {key.rpartition(".")[2]: key for key in keys}
    near = difflib.get_close_matches(unknown, keys, n=1, cutoff=0.8) or [
        leaves[leaf] for leaf in difflib.get_close_matches(unknown.rpartition(".")[2], leaves, n=1)
    ]
    return f"unknown key {unknown}: " + (f"did you mean {near[0]}?" if near else "--help lists the keys")
