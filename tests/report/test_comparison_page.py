"""The comparison of evaluations: groups that share a table, means over runs, caveats."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from fss.errors import RunError
from fss.report.comparison_page import compare
from launch.report import main
from tests.support.evaluated import evaluated, write_environment

pytestmark = pytest.mark.usefixtures("small_figures")


def report_of(out: Path) -> dict:
    """The content of report.json."""
    return json.loads((out / "report.json").read_text())


def test_training_runs_of_a_cell_are_one_row_beside_the_paper(tmp_path):
    runs = [
        evaluated(tmp_path / f"q{seed}", "qgnet", {"cat": iou, "dog": 0.5}, options={"prior_weights": f"sha {seed}"})
        for seed, iou in enumerate((0.3, 0.4, 0.5))
    ]
    runs.append(evaluated(tmp_path / "p", "prototype", {"cat": 0.2, "dog": 0.3}, options={"scale": 20.0}))
    page = report_of(compare(runs, tmp_path / "out").parent)
    [table] = page["tables"]
    assert table["header"] == ["", "backbone", "fold 0", "FB-IoU", "published"]
    assert table["rows"] == [
        ["prototype", "resnet50", "25.00", "50.00", "\N{EM DASH}"],
        ["qgnet", "resnet50", "45.00 ± 5.00 (3)", "50.00", "63.4"],
    ]
    assert page["caveats"] == []
    rows = list(csv.reader((tmp_path / "out" / "tables.csv").read_text().splitlines()))
    assert rows[2:] == table["rows"]
    assert r"45.00 $\pm$ 5.00 (3)" in (tmp_path / "out" / "tables.tex").read_text()
    for picture in page["pictures"]:
        assert (tmp_path / "out" / picture["file"]).exists()


def test_options_that_differ_name_the_row_and_equal_ones_do_not(tmp_path):
    runs = [
        evaluated(tmp_path / value, "qgnet", {"cat": 0.5}, options={"prior_map": value, "dim": 256})
        for value in ("on", "off")
    ]
    [table] = report_of(compare(runs, tmp_path / "out").parent)["tables"]
    assert {row[0] for row in table["rows"]} == {"qgnet (prior_map on)", "qgnet (prior_map off)"}


def test_runs_with_and_without_weights_are_not_averaged(tmp_path):
    given = evaluated(tmp_path / "a", "gfsam", {"cat": 0.6}, options={"sam_weights": "sha256 12"})
    random = evaluated(tmp_path / "b", "gfsam", {"cat": 0.2}, options={"sam_weights": None})
    [table] = report_of(compare([given, random], tmp_path / "out").parent)["tables"]
    assert [row[0] for row in table["rows"]] == ["gfsam (sam_weights False)", "gfsam (sam_weights True)"]


def test_weights_that_follow_from_another_option_are_not_named(tmp_path):
    def run(name: str, prior_map: str, weights: str | None) -> Path:
        return evaluated(
            tmp_path / name, "qgnet", {"cat": 0.5}, options={"prior_map": prior_map, "prior_weights": weights}
        )

    def names(*runs: Path) -> set[str]:
        [table] = report_of(compare(runs, tmp_path / f"out_{len(runs)}").parent)["tables"]
        return {row[0] for row in table["rows"]}

    on, off, unused = run("a", "on", "sha256 12"), run("b", "off", None), run("c", "off", "sha256 12")
    assert names(on, off) == {"qgnet (prior_map on)", "qgnet (prior_map off)"}
    assert names(on, off, unused) == {
        "qgnet (prior_map on, prior_weights True)",
        "qgnet (prior_map off, prior_weights False)",
        "qgnet (prior_map off, prior_weights True)",
    }


def test_folds_are_columns_and_their_mean_weighs_each_alike(tmp_path):
    runs = [evaluated(tmp_path / f"a{seed}", "qgnet", {"cat": iou}) for seed, iou in enumerate((0.2, 0.4))]
    runs.append(evaluated(tmp_path / "b", "qgnet", {"cow": 0.6}, fold=1))
    [table] = report_of(compare(runs, tmp_path / "out").parent)["tables"]
    [row] = table["rows"]
    assert table["header"][2:5] == ["fold 0", "fold 1", "mean"]
    assert row[3:5] == ["60.00", "45.00"]
    assert row[-1] == "66.4", "the paper's mean over the same two folds, (63.4 + 69.4) / 2; over all four it is 61.6"


def test_scores_at_different_resolutions_do_not_share_a_table(tmp_path):
    runs = [
        evaluated(tmp_path / "a", "qgnet", {"cat": 0.5}),
        evaluated(tmp_path / "b", "gfsam", {"cat": 0.5}, scoring={"resolution": 1024}),
    ]
    titles = [table["title"] for table in report_of(compare(runs, tmp_path / "out").parent)["tables"]]
    assert len(titles) == 2 and "1024" in titles[1]


def test_different_episodes_and_missing_folds_are_caveats(tmp_path):
    runs = [
        evaluated(tmp_path / "a", "qgnet", {"cat": 0.5}, drawn="a", caveats=["short."]),
        evaluated(tmp_path / "b", "prototype", {"cat": 0.5}, drawn="b"),
        evaluated(tmp_path / "c", "prototype", {"cow": 0.5}, fold=1),
    ]
    caveats = "\n".join(report_of(compare(runs, tmp_path / "out").parent)["caveats"])
    assert "fold 0 were not evaluated on the same episodes" in caveats
    assert "not every method has every fold" in caveats
    assert "qgnet: short." in caveats


@pytest.mark.parametrize(
    ("missing", "message"), [("results.json", "holds no finished evaluation"), ("report/report.json", "has no page")]
)
def test_a_folder_without_a_finished_evaluation_is_refused(tmp_path, missing, message, capsys):
    folder = evaluated(tmp_path / "a", "qgnet", {"cat": 0.5})
    (folder / missing).unlink()
    with pytest.raises(RunError, match=message):
        compare([folder], tmp_path / "out")
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {folder} {message}")


def test_equal_caveats_appear_once(tmp_path):
    runs = [
        evaluated(tmp_path / name, method, {"cat": 0.5}, caveats=["short."], options={"seed": name})
        for name, method in (("a", "qgnet"), ("b", "qgnet"), ("c", "bam"))
    ]
    assert report_of(compare(runs, tmp_path / "out").parent)["caveats"] == ["qgnet, bam: short."]


def costs(out: Path) -> dict[str, dict[str, str]]:
    """Row -> column -> cell of the one table of costs."""
    [table] = [table for table in report_of(out)["appendix"] if table["title"].startswith("Cost")]
    return {row[0]: dict(zip(table["header"], row, strict=True)) for row in table["rows"]}


def trained(folder: Path, ranks: int, device: str, *, threads: int = 1, **made_from: str) -> str:
    """A training run of 30 steps, 4 s each for 20 and 6 s each for 10; gives its weights."""
    (folder / "report").mkdir(parents=True)
    rows = [{"step": step, "speed": {"step_s": seconds}} for step, seconds in ((10, 4.0), (20, 4.0), (30, 6.0))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    placed(folder, ranks, device, threads, run={}, method=made_from, weights=None)
    return str(folder / "best.safetensors")


def placed(folder: Path, ranks: int, device: str, threads: int, **config) -> None:
    write_environment(folder, ranks, device, threads)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_hours_are_those_of_all_runs_behind_the_weights(tmp_path):
    """30 steps take 140 s; the prior extractor ran on 9 devices, what was trained from it on 2 cores of 3 ranks."""
    prior = trained(tmp_path / "prior", 9, "H200", backbone_weights=str(tmp_path / "others.pth"))
    weights = trained(tmp_path / "meta", 3, "cpu", threads=2, prior_weights=prior)
    run = evaluated(tmp_path / "a", "qgnet", {"cat": 0.5}, flops=3_210_000_000)
    placed(run, 2, "H200", 1, run={}, method={"prior_weights": prior}, weights=weights)
    untrained = evaluated(tmp_path / "b", "prototype", {"cat": 0.5})
    placed(untrained, 1, "cpu", 4, run={}, method={}, weights=None)
    lost = evaluated(tmp_path / "c", "bam", {"cat": 0.5})
    placed(lost, 1, "cpu", 4, run={}, method={}, weights=str(tmp_path / "gone" / "best.safetensors"))
    found = costs(compare([run, untrained, lost], tmp_path / "out").parent)
    assert found["qgnet"]["hours of training"] == "0.23 CPU core + 0.35 H200"
    assert found["qgnet"]["of evaluation"] == "0.10 H200", "1440 episodes of 0.25 s"
    assert found["prototype"]["of evaluation"] == "0.40 CPU core"
    assert found["prototype"]["hours of training"] == found["bam"]["hours of training"] == "\N{EM DASH}"
    assert found["qgnet"]["GFLOP"] == "3.21" and found["bam"]["GFLOP"] == "\N{EM DASH}"
