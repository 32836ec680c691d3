"""From a job to results.json: what is written, what goes on, what is refused."""

import json
import os
import platform
import signal
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
import torch
import yaml

from fss.data.dataset import DataConfig
from fss.data.episode_lists import read_list
from fss.distributed.runtime import RuntimeConfig
from fss.distributed.signals import INTERRUPTED
from fss.errors import ConfigError, RunError
from fss.evaluate import loading
from fss.evaluate.loading import load_for_evaluation
from fss.evaluate.plan import EvalConfig, FoldConfig
from fss.jobs import evaluate as evaluation
from fss.jobs.evaluate import evaluate
from fss.methods import METHODS
from fss.nn.exports import ExportHeader
from fss.numerics import numerics
from fss.provenance import count_conditions
from fss.report.comparison_page import compare
from fss.tracking.log import LogConfig
from shards.read import ShardSet
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.episode_toy import Colour, ColourConfig

SMALL = EvalConfig(episodes=15, seeds=[3, 4], min_area=1)


@dataclass(frozen=True, kw_only=True)
class Job:
    run: RuntimeConfig
    data: DataConfig
    episodes: FoldConfig = field(default_factory=lambda: FoldConfig(shots=2))
    eval: EvalConfig = SMALL
    log: LogConfig = field(default_factory=lambda: LogConfig(wandb="off"))
    method: ColourConfig = field(default_factory=ColourConfig)
    weights: str | None = None


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "synthetic"
    pack(synthetic(60), folder)
    return folder


@pytest.fixture(autouse=True)
def colour(monkeypatch):
    monkeypatch.setitem(METHODS, "colour", Colour)


def job(packed: Path, folder: Path, *, report: bool = False, **changes) -> Job:
    """Drawing the page takes longer than all else here."""
    run = RuntimeConfig(dir=str(folder), device="cpu", threads=1, report=report)
    return Job(run=run, data=DataConfig(shards=str(packed), workers=1), **changes)


def finished(job: Job) -> dict:
    assert evaluate(job, yaml.safe_dump(asdict(job))) == 0
    return json.loads((Path(job.run.dir) / "results.json").read_text())


def lines(folder: Path) -> list[dict]:
    paths = sorted((folder / "episodes").glob("rank_*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_what_a_run_leaves(packed, tmp_path, capsys):
    results = finished(job(packed, tmp_path / "run", report=True))
    rows = lines(tmp_path / "run")
    assert len(rows) == results["episodes"] == 30
    per_seed = {}
    for seed in (3, 4):
        ious = []
        for about in results["classes"].values():
            tables = [r["counts"][1] for r in rows if r["seed"] == seed and r["class_id"] == about["id"]]
            ious.append(sum(i for i, _ in tables) / max(1, sum(u for _, u in tables)))
        per_seed[seed] = sum(ious) / len(ious)
        assert results["seeds"][str(seed)]["miou"] == pytest.approx(per_seed[seed])
    mean = sum(per_seed.values()) / 2
    assert results["miou"]["mean"] == pytest.approx(mean)
    assert results["miou"]["std"] == pytest.approx(sum((v - mean) ** 2 for v in per_seed.values()) ** 0.5)
    assert [about["id"] for about in results["classes"].values()] == [1, 5, 9, 13, 17, 21]
    assert results["encoder_passes"] == results["images"]
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert logged["step"] == 30 and logged["miou"] == results["miou"]["mean"]
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == {"status": "finished"}
    assert {"index.html", "report.json", "report.md"} <= {path.name for path in (tmp_path / "run/report").iterdir()}
    listed = read_list(tmp_path / "run" / "episodes.tsv", ShardSet(packed).manifest, shots=2)
    assert {(e.seed, e.number, e.class_id) for e in listed} == {(r["seed"], r["number"], r["class_id"]) for r in rows}
    printed = capsys.readouterr().out
    for words in ("mean ± std", "0 of scheme interleaved", "15 of each seed (3, 4)", "original size", "not counted"):
        assert words in printed


def test_the_same_command_again_tells_the_same_without_work(packed, tmp_path, monkeypatch):
    first = finished(job(packed, tmp_path))
    monkeypatch.setattr(Colour, "encode", None)
    again = job(packed, tmp_path, eval=replace(SMALL, cache_gib=0))
    assert finished(again) == first
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_page_that_was_left_out_is_written_by_the_same_command(packed, tmp_path):
    run, page = tmp_path / "run", tmp_path / "run" / "report" / "index.html"
    first = finished(job(packed, run))
    assert not page.exists()
    with pytest.raises(RunError, match=f"{run} has no page: .* with --run.report true"):
        compare([run], tmp_path / "comparison")
    assert finished(job(packed, run, report=True)) == first
    assert page.exists() and compare([run], tmp_path / "comparison").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval": replace(SMALL, size=41)}, "eval.size is None there and 41 here"),
        ({"eval": replace(SMALL, seeds=[3])}, "episodes is .* there"),
        ({"method": ColourConfig(size=41)}, "method.size is 33 there and 41 here"),
        ({"run": "threads"}, "run.threads is 1 there and 2 here"),
    ],
)
def test_another_evaluation_does_not_mix_with_this_one(packed, tmp_path, changes, words):
    before = job(packed, tmp_path)
    finished(before)
    if changes == {"run": "threads"}:
        changes = {"run": replace(before.run, threads=2)}
    with pytest.raises(RunError, match=words):
        evaluate(replace(before, **changes), "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "aarch64"}, "environment.device is '.*' there and 'aarch64' here: .*continue on the device"),
        ({"torch": "2.14.0+cu130"}, "environment.torch is '.*' there and '2.14.0[+]cu130' here"),
        ({"tf32_cudnn": True}, "environment.tf32_cudnn is False there and True here"),
    ],
)
def test_counts_of_another_device_or_torch_are_not_added(packed, tmp_path, monkeypatch, changes, words):
    finished(job(packed, tmp_path))
    monkeypatch.setattr(evaluation, "count_conditions", lambda device: count_conditions(device) | changes)
    with pytest.raises(RunError, match=words):
        evaluate(job(packed, tmp_path), "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "tf32"}, "run.precision is 'float32' there and 'tf32' here: .*repeat the run's own options"),
        ({"deterministic": True}, "run.deterministic is False there and True here"),
    ],
)
def test_counts_of_another_precision_are_not_added(packed, tmp_path, changes, words):
    before = job(packed, tmp_path)
    finished(before)
    with pytest.raises(RunError, match=words):
        evaluate(replace(before, run=replace(before.run, **changes)), "")


def test_the_conditions_of_counts(monkeypatch):
    on_cpu = count_conditions(torch.device("cpu"))
    assert on_cpu["device"] == platform.machine() and on_cpu["torch"] == torch.__version__
    assert not on_cpu["tf32_matmul"] and not on_cpu["tf32_cudnn"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with numerics("tf32"):
        on_gpu = count_conditions(torch.device("cuda", 0))
    assert on_gpu["device"] == "NVIDIA H100" and on_gpu["tf32_matmul"] and on_gpu["tf32_cudnn"]


def test_a_record_without_conditions_continues_once_and_has_them_then(packed, tmp_path, capsys, monkeypatch):
    finished(job(packed, tmp_path))
    record = tmp_path / "run.json"
    whole = json.loads(record.read_text())
    old = {key: value for key, value in whole.items() if not key.startswith("environment.")}
    del old["run.deterministic"]
    record.write_text(json.dumps(old))
    capsys.readouterr()
    finished(job(packed, tmp_path))
    line = "did not record device, torch, tf32_matmul, tf32_cudnn: they could not be compared"
    assert line in " ".join(capsys.readouterr().out.split())
    finished(job(packed, tmp_path))
    assert "could not be compared" not in capsys.readouterr().out
    monkeypatch.setattr(evaluation, "count_conditions", lambda device: count_conditions(device) | {"device": "other"})
    with pytest.raises(RunError, match=r"environment\.device"):
        evaluate(job(packed, tmp_path), "")


def test_other_weights_are_refused(packed, tmp_path, monkeypatch):
    finished(job(packed, tmp_path))

    class Other(Colour):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.non_trainable.weight.mul_(2)

    monkeypatch.setitem(METHODS, "colour", Other)
    with pytest.raises(RunError, match=r"weights is .* there"):
        evaluate(job(packed, tmp_path), "")


def test_asked_to_stop_it_goes_on_where_it_stopped(packed, tmp_path, monkeypatch):
    whole = finished(job(packed, tmp_path / "whole"))
    shipped = Colour.encode

    def encode(self, image):
        if len(self.encoded) == 12:
            os.kill(os.getpid(), signal.SIGUSR1)
        return shipped(self, image)

    cut = job(packed, tmp_path / "cut")
    monkeypatch.setattr(Colour, "encode", encode)
    assert evaluate(cut, "") == INTERRUPTED
    assert json.loads((tmp_path / "cut" / "status.json").read_text()) == {"status": "interrupted"}
    assert 0 < len(lines(tmp_path / "cut")) < 30
    assert not (tmp_path / "cut" / "results.json").exists()
    monkeypatch.setattr(Colour, "encode", shipped)
    found = finished(cut)
    assert {k: found[k] for k in ("miou", "seeds", "classes")} == {k: whole[k] for k in ("miou", "seeds", "classes")}
    assert found["encoder_passes"] >= whole["encoder_passes"]  # what was known at the stop was computed again


def test_a_method_that_learns_needs_weights(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(Colour, "requires_training", True)
    with pytest.raises(ConfigError, match="colour needs training but weights names no file: train it"):
        evaluate(job(packed, tmp_path), "")


def test_options_may_differ_from_those_of_training(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_method", lambda path: (Colour(ColourConfig(size=33)), ExportHeader(fold=2)))
    monkeypatch.setattr(loading, "load_export", lambda path: ({}, ExportHeader()))
    restored = classmethod(lambda cls, tensors, header: cls(ColourConfig(**header.config)))
    monkeypatch.setattr(Colour, "restore", restored)
    method, header, differences = load_for_evaluation(job(packed, tmp_path, method=ColourConfig(size=41), weights="w"))
    assert (method.config.size, header) == (41, ExportHeader(fold=2))
    assert differences == ["method.size is 41; trained with 33"]
    _, _, differences = load_for_evaluation(job(packed, tmp_path, weights="w"))
    assert differences == []
