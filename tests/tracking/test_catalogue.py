"""The catalogue of logged values: its four users read the same entries."""

import json

import pytest

from fss.compat import LOG_KEYS
from fss.report.page import speed_table
from fss.tracking.catalogue import CHANCE_LEVEL, METRICS, PAGES, metric_of, panel_metrics
from fss.tracking.log import Log, LogConfig
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import RunInfo

CHARTS = [chart for sections in PAGES.values() for charts in sections.values() for chart in charts]
NUMBERS = {
    key.removeprefix(CHANCE_LEVEL)
    for chart in CHARTS
    if chart.drawn in ("lines", "histogram", "bars")
    for key in chart.keys
}
UNCHARTED = {"knn/images", "knn/unreadable", "fb_iou_std"}  # of which a page and wandb's table of runs are enough


def test_every_number_of_a_chart_has_an_entry_and_every_entry_has_a_chart():
    entries = {key: metric_of(key) for key in NUMBERS}
    assert [key for key, metric in entries.items() if metric is None] == []
    assert {metric.key for metric in METRICS} - {metric.key for metric in entries.values()} == UNCHARTED


def test_the_metrics_of_a_panel_have_one_axis():
    for title, metrics in panel_metrics().items():
        assert len({metric.axis for metric in metrics}) == 1, title


def test_every_entry_of_the_speed_table_has_its_unit():
    speed = {"images_per_s": 12.34, "step_s": 0.5, "data_wait": 0.25, "peak_memory_mb": 100.4}
    table = speed_table([{"step": 1, "speed": speed}])
    assert {row["what"]: row["median"] for row in table} == {
        "images / s, all ranks": "12.3",
        "optimizer step, ms": "500",
        "waiting for data, % of the time": "25.0",
        "peak memory of rank 0, MiB": "100",
    }


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"step": 2, "epoch": 0.5, "lr": 0.1, "grad_norm": 1.0, "loss": 1.5, "loss/global": 0.5, "top1/local": 0.25},
            "step 2/4  epoch 0.50  loss 1.5  loss/global 0.5  top1/local 0.25",
        ),
        ({"step": 4, "knn/top1": 0.5, "knn/chance_level": 0.1, "knn/images": 9.0}, "step 4/4  knn/top1 0.5"),
        ({"step": 4, "val/miou": 0.5, "val/fb_iou": 0.6, "val/iou/cat": 0.5}, "step 4/4  val/miou 0.5"),
        ({"step": 4, "miou": 0.5, "miou_std": 0.1, "fb_iou": 0.6, "iou/cat": 0.5}, "step 4/4  miou 0.5"),
    ],
)
def test_a_console_line_has_the_values_that_the_catalogue_marks(tmp_path, capsys, row, line):
    run = RunDir(tmp_path / "run")
    run.open({}, "")
    about = RunInfo(kind="pretrain", config={})
    log = Log(run, LogConfig(wandb="off"), active=True, about=about, total=4, unit="images")
    log.row(row)
    log.close()
    assert capsys.readouterr().out.splitlines()[0].strip() == line
    assert json.loads(run.metrics.read_text()) == row


def test_rows_of_earlier_versions_are_read_under_the_keys_of_today(tmp_path):
    (earlier,) = (key for key, current in LOG_KEYS.items() if current == "knn/chance_level")
    run = RunDir(tmp_path)
    run.metrics.write_text(json.dumps({"step": 0, "knn/top1": 0.5, earlier: 0.1}) + "\n")
    assert run.rows() == [{"step": 0, "knn/top1": 0.5, "knn/chance_level": 0.1}]
