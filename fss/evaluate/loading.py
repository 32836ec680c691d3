"""Loading the method that an evaluation or an inference names."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from fss.errors import ConfigError
from fss.methods import METHODS, load_method
from fss.methods.base import EpisodeMethod
from fss.nn.exports import ExportHeader, load_export


class NamesMethod(Protocol):
    """A job that names a method, and perhaps the file that holds its weights."""

    method: Any
    weights: str | None


def load_for_evaluation(job: NamesMethod) -> tuple[EpisodeMethod, ExportHeader, list[str]]:
    """The method to evaluate, what its weights say of their training, and what is unlike that training.

    With weights, options of the method that were given besides stand in for those that it was trained with.
    Raises ConfigError where a method that learns comes without weights, WeightsError where they do not fit.
    """
    name = job.method.name
    if job.weights is None:
        if METHODS[name].requires_training:
            raise ConfigError(f"method {name} learns but weights names no file: train it with launch/meta_train.py")
        torch.manual_seed(0)  # a backbone without weights is at least the same one everywhere
        return METHODS[name](job.method), ExportHeader(), []
    method, header = load_method(Path(job.weights))
    asked, trained = asdict(job.method), asdict(method.config)
    changed = [key for key in asked if asked[key] != trained.get(key)]
    if files := [key for key in changed if key.endswith("_weights")]:
        raise ConfigError(
            f"method.{files[0]} is given beside weights {job.weights}, which hold that network already: leave it out"
        )
    if changed:
        tensors, _ = load_export(Path(job.weights))
        method = METHODS[name].restore(tensors, replace(header, config=asked))
    return method, header, [f"method.{key} is {asked[key]}; trained with {trained.get(key)}" for key in changed]
