"""The page of a base learner: constant predictions computed by hand, and verdicts against them."""

import math

import numpy as np
import pytest

from fss.report.label_section import entropy, verdicts

BASELINES = {"loss": 1.0, "accuracy": 0.7, "val/miou": 0.05}


def test_the_best_constant_prediction_costs_the_entropy_of_the_labels():
    shares = np.array([0.5, 0.25, 0.25, 0])
    assert entropy(shares) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))


@pytest.mark.parametrize(
    ("loss", "scores", "good"),
    [
        (0.5, (0.02, 0.4), [True, True, True]),
        (0.95, (0.02, 0.4), [False, True, True]),
        (0.5, (0.02, 0.08), [True, False, True]),
        (0.5, (0.4, 0.3), [True, True, False]),
    ],
)
def test_verdicts(loss, scores, good):
    rows = [{"step": 0, "val/miou": scores[0]}, {"step": 1, "loss": 3.0}]
    rows += [{"step": step, "loss": loss} for step in range(2, 14)] + [{"step": 13, "val/miou": scores[1]}]
    assert [verdict.good for verdict in verdicts(rows, BASELINES)] == good


def test_without_validation_only_the_loss_is_judged():
    assert len(verdicts([{"step": 1, "loss": 0.2}], {"loss": 1.0})) == 1
