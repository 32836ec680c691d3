"""Every chart that is documented finds its data in the runs of the shipped launchers, and the runs know each other."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fss.config import CONFIGS
from fss.tracking.catalogue import PAGES
from fss.tracking.lineage import name_of
from launch import evaluate, meta_train, pretrain_prior, train_base
from tests.support.labelled import rectangles
from tests.support.launching import SMALL
from tests.support.wandb_file import artifacts, config, history, kinds, run, tables

# What wandb calls the things that a chart is drawn from.
DRAWN_FROM = {
    "lines": "number",
    "bars": "number",
    "histogram": "histogram",
    "classes": "table-file",
    "table": "table-file",
    "pictures": "image-file",
}
UNCHARTED = {"knn/images", "knn/unreadable", "fb_iou_std", "chance_level/top1/global", "chance_level/top1/local"}
VIEWED = ["--log.wandb", "offline", "--log.tensorboard", "true", "--log.every", "1", "--data.workers", "0"]
TINY = ["--run.device", "cpu", "--run.threads", "1", "--method.size", "33", "--method.backbone", "resnet18"]


@pytest.fixture(scope="module")
def run_of(packed, tmp_path_factory) -> Callable[[str], Path]:
    """Job -> the directory of its one run, in the folder of all; the prior goes into the method, that into the test."""
    root = tmp_path_factory.mktemp("experiment")
    prior, weights = root / "pretrain" / "prior.safetensors", root / "meta" / "best.safetensors"
    data = ["--data.shards", str(rectangles(root / "set", [1, 2, 3, 4] * 5).folder)]
    learn = [*TINY, *data, "--episodes.scheme", "interleaved", "--data.batch", "4", "--optim.steps", "2"]
    jobs = {
        "pretrain": (
            pretrain_prior.main,
            [],
            [
                *SMALL,
                "--data.shards",
                str(packed),
                *"--method.backbone resnet18 --optim.steps 2 --run.seed 5 --run.report true".split(),
            ],
        ),
        "base": (
            train_base.main,
            [],
            [
                "--config",
                str(CONFIGS / "base/small_cpu.yaml"),
                *learn,
                "--validate.fraction",
                "0.3",
            ],
        ),
        "meta": (
            meta_train.main,
            ["pretrain"],
            [
                "--config",
                str(CONFIGS / "meta/embedded.yaml"),
                *learn,
                *"--method.dim 8 --episodes.min_area 50 --validate.episodes 3 --method.prior_map on".split(),
                "--method.prior_weights",
                str(prior),
            ],
        ),
        "evaluate": (
            evaluate.main,
            ["meta"],
            [
                *data,
                *TINY[:4],
                "--weights",
                str(weights),
                "--eval.episodes",
                "3",
                "--eval.seeds",
                "[0, 1]",
                "--eval.min_area",
                "50",
            ],
        ),
    }

    def done(job: str) -> Path:
        main, before, words = jobs[job]
        folder = root / job
        if not folder.exists():
            for other in before:
                done(other)
            assert main([*words, *VIEWED, "--run.dir", str(folder)]) == 0
        return folder

    return done


@pytest.fixture(autouse=True)
def no_account(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def offline(folder: Path) -> Path:
    (found,) = folder.glob("wandb/offline-run-*/*.wandb")
    return found


def wanted(job: str) -> list[tuple[str, str]]:
    """(pattern of a key, how it is drawn) of every chart of a job."""
    return [(pattern, chart.drawn) for charts in PAGES[job].values() for chart in charts for pattern in chart.patterns]


@pytest.mark.parametrize("job", PAGES)
def test_every_chart_has_data(run_of, job):
    logged = kinds(offline(run_of(job)))
    for pattern, drawn in wanted(job):
        found = {kind for name, kind in logged.items() if re.fullmatch(pattern, name)}
        assert DRAWN_FROM[drawn] in found, f"no {pattern} is logged as {drawn}; there are {sorted(logged)}"
    charted = [pattern for pattern, drawn in wanted(job) if DRAWN_FROM[drawn] in ("number", "histogram")]
    for name, kind in logged.items():
        if kind in ("number", "histogram") and name not in UNCHARTED:
            assert any(re.fullmatch(pattern, name) for pattern in charted), f"{name} is logged and no chart shows it"


@pytest.mark.parametrize("job", PAGES)
def test_tensorboard_has_the_same(run_of, job):
    every = {"images": 0, "scalars": 0, "histograms": 0}
    read = EventAccumulator(str(run_of(job) / "tensorboard"), size_guidance=every).Reload()
    tags = read.Tags()
    places = {"number": tags["scalars"], "histogram": tags["histograms"], "image-file": tags["images"]}
    places["table-file"] = [tag.removesuffix("/text_summary") for tag in tags["tensors"]]
    for pattern, drawn in wanted(job):
        assert any(re.fullmatch(pattern, name) for name in places[DRAWN_FROM[drawn]]), f"no {pattern}"
    logged = history(offline(run_of(job)))
    for name, kind in kinds(offline(run_of(job))).items():
        if kind == "number":
            sent = [row[name] for row in logged if name in row]
            assert [event.value for event in read.Scalars(name)] == pytest.approx(sent, rel=1e-6)


def test_tables_show_examples_and_classes(run_of):
    first, *_, last = tables(offline(run_of("meta")), "validation/examples")
    assert [row["class"] for row in first] == [row["class"] for row in last]
    for column in ("supports", "query", "truth", "prediction"):
        assert first[0][column]["_type"] == "image-file" and first[0][column]["width"] > 20
    (classes,) = tables(offline(run_of("evaluate")), "classes")
    assert [row["class"] for row in classes] == ["red"] and classes[0]["episodes"] == 6
    shown = tables(offline(run_of("base")), "validation/classes")[-1]
    assert {row["class"] for row in shown} <= {"green", "blue", "yellow"}


def test_runs_are_filed_by_experiment_job_fold_and_seed(run_of):
    folders = {job: run_of(job) for job in PAGES}
    filed = {job: run(offline(folder)) for job, folder in folders.items()}
    assert {one["group"] for one in filed.values()} == {folders["meta"].parent.name}
    assert [one["job_type"] for one in filed.values()] == ["pretrain", "base fold 0", "meta fold 0", "evaluate fold 0"]
    names = ["pretrain, seed 5", "base, seed 0", "meta, seed 0", "evaluate, 2 seeds"]
    assert [one["name"] for one in filed.values()] == names
    assert {"qgnet", "interleaved", "1-shot"} <= set(filed["meta"]["tags"])
    for job, folder in folders.items():
        sent_config = config(offline(folder))
        assert (
            sent_config["job"] == job
            and sent_config["environment"]["packages"]["torch"]
            and sent_config["run"]["device"] == "cpu"
        )


def test_weights_link_the_runs(run_of):
    logs = {job: offline(run_of(job)) for job in PAGES}
    prior, best = name_of(run_of("pretrain") / "prior.safetensors"), name_of(run_of("meta") / "best.safetensors")
    assert artifacts(logs["pretrain"], used=False) == {prior: ["latest", "prior"]}
    assert set(artifacts(logs["meta"], used=True)) == {prior}
    assert best in artifacts(logs["meta"], used=False)
    assert set(artifacts(logs["evaluate"], used=True)) == {best}
    (results,) = artifacts(logs["evaluate"], used=False)
    assert results == name_of(run_of("evaluate") / "results.json")
    assert config(logs["meta"])["inputs"] == {"method.prior_weights": prior}
    assert config(logs["evaluate"])["inputs"] == {"weights": best}
