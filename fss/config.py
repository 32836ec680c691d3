"""The configuration: one typed schema a job, composed of the options of each package.

The only file with jsonargparse.
"""

import difflib
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from jsonargparse import (  # type: ignore[attr-defined]  # one is exported by a star import
    ActionConfigFile,
    ArgumentParser,
    get_loader,
    set_loader,
    set_parsing_settings,
)

from fss.compat import OPTIONS, current_arguments, current_configuration, values
from fss.data.dataset import DataConfig
from fss.data.episodes import EpisodeConfig, SplitConfig
from fss.data.paired_transforms import AugmentConfig
from fss.data.view_dataset import ViewDataConfig
from fss.distributed.runtime import RunConfig, RuntimeConfig
from fss.errors import ConfigError
from fss.evaluate.plan import EvalConfig, FoldConfig
from fss.methods import METHODS
from fss.methods.base import EpisodeMethod
from fss.methods.base_learner import BaseLearnerConfig
from fss.methods.prior.config import PriorConfig
from fss.nn.exports import read_header
from fss.tracking.log import LogConfig
from fss.train.checkpoint import CheckpointConfig
from fss.train.optim import OptimConfig, base_optim, meta_optim
from fss.train.validation.episode_validation import ValidateConfig
from fss.train.validation.knn_probe import ProbeConfig
from fss.train.validation.label_validation import LabelValidateConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EPISODIC = tuple(name for name, method in METHODS.items() if issubclass(method, EpisodeMethod))
Job = TypeVar("Job", bound="Schema")

set_parsing_settings(docstring_parse_attribute_docstrings=True)
_load_yaml = get_loader("yaml")
set_loader("yaml", lambda text: current_configuration(_load_yaml(text)), (yaml.YAMLError,))


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The options of a job; every field has a docstring and becomes an option of the command line."""

    methods: ClassVar[Sequence[str]]
    """Methods that the job can run; the first is the default."""
    run_prefix: ClassVar[str] = ""
    """Prefix of the name of the default run directory."""


@dataclass(frozen=True, kw_only=True)
class PretrainJob(Schema):
    """Pretrain QGNet's prior extractor."""

    methods = ("prior",)

    run: RunConfig = field(default_factory=RunConfig)
    data: ViewDataConfig = field(default_factory=ViewDataConfig)
    method: PriorConfig = field(default_factory=PriorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


@dataclass(frozen=True, kw_only=True)
class BaseJob(Schema):
    """Train the base learner of BAM and MSANet on the base classes of a fold."""

    methods = ("base",)
    run_prefix = "base_"

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=partial(DataConfig, batch=12))
    episodes: SplitConfig = field(default_factory=SplitConfig)
    augment: AugmentConfig = field(default_factory=partial(AugmentConfig, scale=(0.5, 2.0), min_foreground=0.0))
    method: BaseLearnerConfig = field(default_factory=BaseLearnerConfig)
    optim: OptimConfig = field(default_factory=base_optim)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validate: LabelValidateConfig = field(default_factory=LabelValidateConfig)


@dataclass(frozen=True, kw_only=True)
class MetaTrainJob(Schema):
    """Train a method from episodes of base classes."""

    methods = tuple(name for name in EPISODIC if METHODS[name].requires_training)
    run_prefix = "meta_"

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=partial(DataConfig, batch=4))
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    method: Any
    optim: OptimConfig = field(default_factory=meta_optim)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)


@dataclass(frozen=True, kw_only=True)
class EvalJob(Schema):
    """Evaluate a method on episodes of a fold's novel classes."""

    methods = EPISODIC
    run_prefix = "evaluate_"

    run: RuntimeConfig = field(default_factory=RuntimeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    episodes: FoldConfig = field(default_factory=FoldConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    method: Any
    weights: str | None = None
    """Export of a meta-training run; its header brings the method and its options."""
    log: LogConfig = field(default_factory=LogConfig)


def parse(schema: type[Job], argv: list[str] | None, *, prog: str, default: str | None = None) -> Job:
    """Parse a command line: the schema's defaults, then YAML files, then options; the last value counts.

    `--method NAME` (in a file `method: {name: NAME}`) decides the options of the method. If `--weights` names an
    export, the options that its method was trained with are the defaults.

    argv: the words; those of the process if None. default: the file under configs/ that is read if argv has no
    --config; None: the schema's own defaults. Earlier names of options are accepted, see fss.compat.
    Raises ConfigError, one sentence with key, value and remedy; exits with 0 on --help and --print_config.
    """
    argv = current_arguments(sys.argv[1:] if argv is None else argv)
    if default and _on_command_line(argv, "--config") is None:
        argv = ["--config", str(CONFIGS / default), *argv]
    argv = [re.sub(r"^--method(?==|$)", "--method.name", word) for word in argv]
    trained = _trained_with(schema, argv)
    name = _method_name(schema, argv, trained, prog)

    parser = ArgumentParser(
        prog=prog,
        description=f"{schema.__doc__} Without --config: configs/{default}." if default else schema.__doc__,
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options; may be repeated.")
    parser.add_class_arguments(schema, nested_key=None, skip={"method"})
    parser.add_class_arguments(METHODS[name].Config, "method")
    try:
        parser.set_defaults({f"method.{key}": value for key, value in trained.items()})
    except KeyError as error:
        raise ConfigError(f"the file of --weights was written by another version ({error}): use that one") from None
    chooser = parser._option_string_actions["--method"]
    chooser.metavar, chooser.help = "NAME", f"Any of {', '.join(schema.methods)}; options of {name}:"
    try:
        namespace = parser.parse_args(argv)
        files = namespace.pop("config")
        if "run" in namespace and namespace.run.dir is None:
            weights = namespace.get("weights") and Path(namespace.weights)
            recipe = Path(str(files[-1]) if files else prog).stem
            stem = f"{weights.parent.name}_{weights.stem}" if weights else recipe
            namespace.run.dir = f"runs/{schema.run_prefix}{stem}{_run_suffix(namespace)}"
        return schema(**vars(parser.instantiate(namespace)))
    except (ArgumentError, TypeError) as error:
        raise ConfigError(_sentence(str(error), _keys(parser))) from None


def _run_suffix(namespace: Any) -> str:
    """The part of the default run.dir for fold, shots and protocol, unless they are the usual ones."""
    episodes, evaluation = namespace.get("episodes"), namespace.get("eval")
    words = [f"_fold{episodes.fold}"] if episodes and episodes.fold else []
    words += [f"_{episodes.shots}shot"] if episodes and episodes.get("shots") not in (None, 1) else []
    words += [f"_{evaluation.protocol}"] if evaluation and evaluation.protocol != "default" else []
    return "".join(words)


def snapshot(job: Schema) -> str:
    """The resolved options of a job as YAML that `--config` reads back."""
    return yaml.safe_dump(asdict(job), sort_keys=False)


def _method_name(schema: type[Schema], argv: list[str], trained: dict, prog: str) -> str:
    """The method whose options the parser needs. Raises ConfigError if places differ or the job cannot run it."""
    places = {
        "--method": _on_command_line(argv, "--method.name"),
        "the configuration": _in_files(argv, "method", "name"),
        "the file of --weights": trained.get("name"),
    }
    given = {place: name for place, name in places.items() if name is not None}
    for name in given.values():
        if name not in schema.methods:
            requires_training = name not in METHODS or METHODS[name].requires_training
            remedy = f"is not for {prog}: give {' or '.join(schema.methods)}"
            remedy = remedy if requires_training else "needs no training: evaluate it with launch/evaluate.py"
            raise ConfigError(f"method.name {name} {remedy}")
    if len(set(given.values())) > 1:
        claims = " but ".join(f"{place} has {name}" for place, name in given.items())
        raise ConfigError(f"method.name is not clear: {claims}: leave --method out, or give files of that method")
    return next(iter(given.values()), schema.methods[0])


def _trained_with(schema: type[Schema], argv: list[str]) -> dict[str, Any]:
    """The method's options in the header of the weights to evaluate; empty if the job has no weights."""
    if "weights" not in schema.__dataclass_fields__:
        return {}
    path = _on_command_line(argv, "--weights") or _in_files(argv, "weights")
    if path is None:
        return {}
    header = read_header(Path(path))
    if header.config is None:
        content = header.method or "no method"
        raise ConfigError(f"weights {path} holds {content}: give what a run of launch/meta_train.py exported")
    return header.config


def _on_command_line(argv: list[str], option: str) -> str | None:
    """The last value of `option` among the words."""
    return next(reversed(values(argv, option)), None)


def _in_files(argv: list[str], *keys: str) -> Any:
    """The entry in the last --config that has one; a file that is not YAML is left to the parser."""
    entry = None
    for path in values(argv, "--config"):
        try:
            node = yaml.safe_load(Path(path).read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        entry = entry if node is None else node
    return entry


def _keys(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if "." in action.dest]


def _sentence(message: str, keys: list[str]) -> str:
    """An error of jsonargparse as one sentence with key, value and remedy."""
    message = re.sub(r"\s+", " ", message).strip().rstrip(".")
    if match := re.match(r'Parser key "(.+?)": (.*?)\.? Got value: (.*)$', message):
        key, wanted, value = match.groups()
        wanted = re.sub(r"<class '(.+?)'>", r"\1", wanted).replace("typing.", "")
        remedy = "; YAML reads a bare on or off as that, so put it in quotes" if value in ("True", "False") else ""
        return f"{key} cannot be {value!r}: {wanted[0].lower()}{wanted[1:]}{remedy}"
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        unknown = match[1].split("=")[0].lstrip("-")
    elif match := re.match(r"Group '(.+?)' does not accept option '(.+?)'", message):
        unknown = f"{match[1]}.{match[2]}"
    elif match := re.match(r"Option '(.+?)' is not accepted", message):
        unknown = match[1]
    else:
        return f"{message} (see --help)"
    if unknown in OPTIONS:  # inside the value of a whole group
        return f"unknown key {unknown}: it is now called {OPTIONS[unknown]}"
    leaves = {key.rpartition(".")[2]: key for key in keys}
    near = difflib.get_close_matches(unknown, keys, n=1, cutoff=0.8) or [
        leaves[leaf] for leaf in difflib.get_close_matches(unknown.rpartition(".")[2], leaves, n=1)
    ]
    return f"unknown key {unknown}: " + (f"did you mean {near[0]}?" if near else "--help lists the keys")
