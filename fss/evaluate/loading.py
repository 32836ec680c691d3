"""Loading the method of an evaluation or an inference."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from fss.errors import ConfigError
from fss.methods import METHODS, load_method
from fss.methods.base import EpisodeMethod
from fss.nn.exports import ExportHeader, load_export


class NamesMethod(Protocol):
    """A job that names a method and, if the method is trained, the file with its weights."""

    @property
    def method(self) -> Any: ...
    @property
    def weights(self) -> str | None: ...


def load_for_evaluation(job: NamesMethod) -> tuple[EpisodeMethod, ExportHeader, list[str]]:
    """Load the method of a job, the header of its weights, and sentences on options that differ from its training.

    With weights, an option of the job replaces that of the training.
    Raises ConfigError if a method that is trained has no weights or does not segment by supports, WeightsError if the
    weights do not fit.
    """
    name = job.method.name
    kind = METHODS[name]
    if not issubclass(kind, EpisodeMethod):
        raise ConfigError(f"method is {name}, which does not segment by supports: give a method that does")
    if job.weights is None:
        if kind.requires_training:
            raise ConfigError(
                f"method {name} needs training but weights names no file: train it with launch/meta_train.py"
            )
        torch.manual_seed(0)  # a backbone without weights is the same on all ranks
        return kind(job.method), ExportHeader(), []
    method, header = load_method(Path(job.weights))
    options, trained = asdict(job.method), asdict(method.config)
    changed = [key for key in options if options[key] != trained.get(key)]
    if files := [key for key in changed if key.endswith("_weights")]:
        raise ConfigError(
            f"method.{files[0]} is given together with weights {job.weights}, which contain that network: leave it out"
        )
    if changed:
        tensors, _ = load_export(Path(job.weights))
        method = kind.restore(tensors, replace(header, config=options))
    return method, header, [f"method.{key} is {options[key]}; trained with {trained.get(key)}" for key in changed]
