"""Evaluations beside each other: what shares a table, what is averaged, what is warned of."""

import csv
import json
import statistics
from pathlib import Path

import pytest

from fss.engine.reports.comparison import compare
from fss.errors import RunError
from launch.report import main

SCORING = {"size": 225, "resize": "exact", "resolution": "original", "labels": "own", "ignore_255": True}


def evaluation(
    folder: Path, method: str, ious: dict[str, float], *, fold: int = 0, drawn: str = "a", options: dict | None = None,
    scoring: dict | None = None, cautions: list[str] | None = None,
) -> Path:    # fmt: skip
    """A run directory as launch/evaluate.py leaves it, of one seed."""
    (folder / "report").mkdir(parents=True)
    mean = statistics.fmean(ious.values())
    found = {
        "protocol": {"data": "voc, 9 images", "fold": str(fold)},
        "scoring": SCORING | (scoring or {}),
        "parameters": {"trained": 5_000_000, "frozen": 25_000_000},
        "miou": {"mean": mean, "std": None},
        "fb_iou": {"mean": 0.5, "std": None},
        "classes": {name: {"iou": {"mean": iou, "std": None}} for name, iou in ious.items()},
        "seconds_per_episode": 0.25,
        "encoder_passes_per_image": 1.0,
    }
    cell = {"method": method, "scheme": "pascal", "fold": fold, "shots": 1, "backbone": "resnet50", "size": 473}
    run = {"episodes": drawn, "method.name": method, "method.backbone": "resnet50", "method.size": 473}
    run |= {f"method.{key}": value for key, value in (options or {}).items()}
    told = {"figures": {"cell": cell}, "cautions": cautions or []}
    (folder / "results.json").write_text(json.dumps(found))
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "report" / "report.json").write_text(json.dumps(told))
    (folder / "report" / "worst.png").write_bytes(b"PNG")
    return folder


def told(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def test_training_runs_of_a_cell_are_one_row_beside_the_paper(tmp_path):
    runs = [
        evaluation(tmp_path / f"q{seed}", "qgnet", {"cat": iou, "dog": 0.5}, options={"prior_weights": f"sha {seed}"})
        for seed, iou in enumerate((0.3, 0.4, 0.5))
    ]
    runs.append(evaluation(tmp_path / "p", "prototype", {"cat": 0.2, "dog": 0.3}, options={"scale": 20.0}))
    page = told(compare(runs, tmp_path / "out").parent)
    [table] = page["tables"]
    assert table["header"] == ["", "backbone", "fold 0", "FB-IoU", "published"]
    assert table["rows"] == [
        ["prototype", "resnet50", "25.00", "50.00", "\N{EM DASH}"],
        ["qgnet", "resnet50", "45.00 ± 5.00 (3)", "50.00", "63.4"],
    ]
    assert page["cautions"] == []
    rows = list(csv.reader((tmp_path / "out" / "tables.csv").read_text().splitlines()))
    assert rows[2:] == table["rows"]
    assert r"45.00 $\pm$ 5.00 (3)" in (tmp_path / "out" / "tables.tex").read_text()
    for picture in page["pictures"]:
        assert (tmp_path / "out" / picture["file"]).exists()


def test_options_that_differ_name_the_row_and_equal_ones_do_not(tmp_path):
    runs = [
        evaluation(tmp_path / value, "qgnet", {"cat": 0.5}, options={"prior_map": value, "dim": 256})
        for value in ("on", "off")
    ]
    [table] = told(compare(runs, tmp_path / "out").parent)["tables"]
    assert {row[0] for row in table["rows"]} == {"qgnet (prior_map on)", "qgnet (prior_map off)"}


def test_runs_with_and_without_weights_are_not_averaged(tmp_path):
    given = evaluation(tmp_path / "a", "gfsam", {"cat": 0.6}, options={"sam_weights": "sha256 12"})
    random = evaluation(tmp_path / "b", "gfsam", {"cat": 0.2}, options={"sam_weights": None})
    [table] = told(compare([given, random], tmp_path / "out").parent)["tables"]
    assert [row[0] for row in table["rows"]] == ["gfsam (sam_weights False)", "gfsam (sam_weights True)"]


def test_folds_are_columns_and_their_mean_weighs_each_alike(tmp_path):
    runs = [evaluation(tmp_path / f"a{seed}", "qgnet", {"cat": iou}) for seed, iou in enumerate((0.2, 0.4))]
    runs.append(evaluation(tmp_path / "b", "qgnet", {"cow": 0.6}, fold=1))
    [table] = told(compare(runs, tmp_path / "out").parent)["tables"]
    [row] = table["rows"]
    assert table["header"][2:5] == ["fold 0", "fold 1", "mean"]
    assert row[3:5] == ["60.00", "45.00"]
    assert row[-1] == "66.4", "the paper's mean over the same two folds, (63.4 + 69.4) / 2; over all four it is 61.6"


def test_scores_of_unlike_frames_are_not_put_in_one_table(tmp_path):
    runs = [
        evaluation(tmp_path / "a", "qgnet", {"cat": 0.5}),
        evaluation(tmp_path / "b", "gfsam", {"cat": 0.5}, scoring={"resolution": 1024}),
    ]
    titles = [table["title"] for table in told(compare(runs, tmp_path / "out").parent)["tables"]]
    assert len(titles) == 2 and "1024" in titles[1]


def test_unlike_episodes_and_missing_folds_are_told(tmp_path):
    runs = [
        evaluation(tmp_path / "a", "qgnet", {"cat": 0.5}, drawn="a", cautions=["short."]),
        evaluation(tmp_path / "b", "prototype", {"cat": 0.5}, drawn="b"),
        evaluation(tmp_path / "c", "prototype", {"cow": 0.5}, fold=1),
    ]
    said = "\n".join(told(compare(runs, tmp_path / "out").parent)["cautions"])
    assert "fold 0 were not evaluated on the same episodes" in said
    assert "not every method has every fold" in said
    assert "qgnet: short." in said


@pytest.mark.parametrize("missing", ["results.json", "report/report.json"])
def test_a_folder_without_a_finished_evaluation_is_refused(tmp_path, missing, capsys):
    folder = evaluation(tmp_path / "a", "qgnet", {"cat": 0.5})
    (folder / missing).unlink()
    with pytest.raises(RunError, match="holds no finished evaluation"):
        compare([folder], tmp_path / "out")
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {folder} holds no finished evaluation")
