"""The pages of all kinds of runs as a browser shows them, on a desk and on a telephone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fss.nn.exports import ExportHeader
from fss.report import evaluation_page as evaluation
from fss.report import training_page as training
from fss.report.comparison_page import compare
from tests.support.browser import browser
from tests.support.evaluated import evaluated, measured, opened, planned, predictor_of
from tests.support.labelled import rectangles
from tests.support.prior_runs import run_of, small_prior, task_of


def of_pretraining(folder: Path) -> Path:
    method = small_prior()
    task = task_of(rectangles(folder / "set", [1, 2, 3] * 8), method)
    return training.report(run_of(folder / "run", method), method, task, torch.device("cpu"))


def of_an_evaluation(folder: Path) -> Path:
    shards = rectangles(folder / "set", [1, 2, 3, 4] * 6)
    what = planned(shards)
    run = opened(folder / "run_of_a_long_name_that_has_no_place_to_break_it_on_a_telephone")
    return evaluation.report(run, predictor_of(what), shards, measured(shards, what), what, ExportHeader())


def of_a_comparison(folder: Path) -> Path:
    options = {"prior_map": "on", "features": "block2+3"}
    runs = [
        evaluated(folder / "a", "qgnet", {"cat": 0.5, "dog": 0.2}, options=options, caveats=["Trained too short."]),
        evaluated(folder / "b", "qgnet", {"cat": 0.6, "dog": 0.1}, options=options | {"prior_map": "off"}),
        evaluated(folder / "c", "msanet", {"cow": 0.6}, fold=1),
    ]
    for run in runs:
        Image.fromarray(np.zeros((300, 3000, 3), np.uint8)).save(run / "report" / "worst.png")
    return compare(runs, folder / "out")


@pytest.mark.parametrize("page", [of_pretraining, of_an_evaluation, of_a_comparison])
def test_nothing_is_broken_cut_off_or_fetched(page, tmp_path):
    with browser(tmp_path) as window:  # first: without a browser nothing is drawn
        path = page(tmp_path)
        for width in (1280, 420):
            window.open(path, width)
            assert window.misfits() == [], width
            wide = window.driver.execute_script(
                "return [...document.querySelectorAll('.wide img')].map(i => [i.naturalWidth, i.offsetWidth])"
            )
            assert wide and all(shown >= natural - 2 for natural, shown in wide), "words of a picture are too small"
        assert window.complaints() == []
