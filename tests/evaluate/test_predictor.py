"""The one predict sequence: modes, precision and logits that are not finite, wherever it is used."""

import ast

import numpy as np
import pytest
import torch

from fss.data.episodes import Episode, EpisodeConfig
from fss.data.folds import fold_of
from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RuntimeConfig
from fss.errors import RunError
from fss.evaluate.cost import episode_flops
from fss.evaluate.examples import predict_example
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.scoring import Scoring
from fss.methods.base import Features, Prediction
from fss.train.validation.episode_validation import EpisodeValidation, ValidateConfig
from tests.support.episode_toy import Colour
from tests.support.labelled import rectangles
from tests.support.places import ROOT

CPU = torch.device("cpu")
EPISODE = Episode(seed=0, number=0, class_id=1, query=0, supports=(1,))


class Observed(Colour):
    """The toy, which records the mode and the precision of every call of its networks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, bool, bool]] = []

    def _record(self) -> None:
        training = any(module.training for module in self.non_trainable.modules())
        self.calls.append((training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))

    def encode(self, image: torch.Tensor) -> Features:
        self._record()
        return super().encode(image)

    def encode_support(self, features: Features, mask: torch.Tensor) -> Features:
        self._record()
        return super().encode_support(features, mask)

    def predict(self, query: Features, supports: list[Features]) -> Prediction:
        self._record()
        return super().predict(query, supports)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)


def test_evaluation_mode_without_gradients_and_back():
    method = Observed()
    method.non_trainable.train()
    predictor = EpisodePredictor(method, device=CPU)
    square, frame = predictor.fit(image())
    mask = np.ones((48, 64), np.uint8)

    def predict() -> Prediction:
        features = predictor.encode(square)
        support = predictor.encode_support(features, mask, frame)
        return predictor.predict(predictor.encode_query(square, features), [support], "query")

    alone = predict()
    assert method.non_trainable.training
    with predictor, predictor:
        inside = predict()
        assert not method.non_trainable.training
    assert method.non_trainable.training
    assert set(method.calls) == {(False, False, False)}
    assert alone.margin.equal(inside.margin)


def test_a_failure_leaves_the_modes_as_they_were():
    method = Observed()
    predictor = EpisodePredictor(method, device=CPU)
    with pytest.raises(ZeroDivisionError), predictor:
        raise ZeroDivisionError
    assert method.non_trainable.training
    predictor.encode(predictor.fit(image()).square)
    assert method.calls == [(False, False, False)]


def test_validation_draws_its_examples_in_the_precision_that_it_scores_in(tmp_path):
    shards = rectangles(tmp_path / "set", [1, 2, 3, 4] * 3)
    context = DistributedContext.from_config(RuntimeConfig(device="cpu", precision="bf16"))
    try:
        method = Observed()
        fold = fold_of("interleaved", 0, shards.manifest)
        options = ValidateConfig(split="novel", episodes=2)
        validation = EpisodeValidation(options, fold, shards, EpisodeConfig(min_area=0), 33, context)
        validation(method)
        scored = set(method.calls)
        method.calls.clear()
        validation.examples(method)
        assert set(method.calls) == scored == {(False, False, True)}
    finally:
        context.close()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error_wherever_they_are_used(tmp_path, monkeypatch, value):
    shards = rectangles(tmp_path / "set", [1, 1])
    logits = torch.zeros(1, 2, 33, 33)
    logits[0, 1, 5, 5] = value
    monkeypatch.setattr(Colour, "predict", lambda *_: Prediction(logits=logits))
    predictor = EpisodePredictor(Colour(), device=CPU)
    with pytest.raises(RunError, match="the logits of the query are not finite"):
        predictor.predict({}, [{}], "the query")
    with pytest.raises(RunError, match="the logits of query r0000 are not finite"):
        predict_example(predictor, shards, EPISODE, Scoring(size=33))
    with pytest.raises(RunError, match="the logits of r0000 are not finite"):
        episode_flops(predictor, shards, EPISODE, "own")


def test_nothing_else_calls_the_methods_of_a_method():
    """Reports, jobs, validation and inference predict through the predictor."""
    for package in ("evaluate", "jobs", "inference", "report", "train"):
        for path in (ROOT / "fss" / package).rglob("*.py"):
            if path.name == "predictor.py":
                continue
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            for call in calls:
                function = call.func
                if isinstance(function, ast.Attribute) and function.attr in ("encode", "encode_support", "predict"):
                    owner = ast.unparse(function.value)
                    assert owner.rpartition(".")[2] != "method", f"{path.name}:{call.lineno} calls {owner}"
