"""The run directory: it resumes its own run and refuses every other."""

import json
import re

import pytest
import torch

from fss.errors import RunError, WeightsError
from fss.tracking import run_dir
from fss.tracking.identity import identity_of
from fss.tracking.run_dir import RunDir, environment_changes

RUN = {"seed": 0, "deterministic": False}
CONFIG = {"run": {**RUN, "dir": "a", "world_size": 2}, "method": {"queue": 8}, "log": {"every": 1}}


def opened(folder, config=CONFIG, manifest="m") -> RunDir:
    run = RunDir(folder)
    run.open(identity_of(config, manifest), "yaml")
    return run


def test_the_same_run_is_resumed_in_another_place_with_other_ranks(tmp_path):
    opened(tmp_path / "run").close()
    moved = {**CONFIG, "run": {**RUN, "dir": "b", "world_size": 4}, "log": {"every": 5}}
    opened(tmp_path / "run", moved).close()


def test_a_pair_is_read_back_as_a_list_and_is_the_same_run(tmp_path):
    config = {**CONFIG, "augment": {"scale": (0.9, 1.1)}}
    opened(tmp_path, config).close()
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    opened(tmp_path, config).close()


def test_weights_count_by_their_content(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")

    def identity(name: str) -> dict:
        return identity_of({"method": {"prior_weights": str(tmp_path / name), "backbone_weights": None}}, "m")

    assert identity("a") == identity("b")
    (tmp_path / "b").write_bytes(b"other")
    assert identity("a") != identity("b")
    with pytest.raises(WeightsError, match=r"method\.prior_weights .*c cannot be read"):
        identity("c")


@pytest.mark.parametrize(
    ("config", "manifest", "words"),
    [
        ({**CONFIG, "method": {"queue": 9}}, "m", "method.queue is 8 there and 9 here"),
        ({**CONFIG, "run": {**RUN, "seed": 1}}, "m", "run.seed is 0 there and 1 here"),
        (CONFIG, "other", "data.manifest is 'm' there and 'other' here"),
    ],
)
def test_another_run_is_refused(tmp_path, config, manifest, words):
    opened(tmp_path).close()
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    with pytest.raises(RunError, match=words):
        opened(tmp_path, config, manifest)
    assert json.loads((tmp_path / "run.json").read_text())["method.queue"] == 8


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(RunError, match="not a run directory"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_start_that_saved_nothing_may_be_corrected(tmp_path):
    opened(tmp_path).close()
    opened(tmp_path, {**CONFIG, "method": {"queue": 9}}).close()
    assert json.loads((tmp_path / "run.json").read_text())["method.queue"] == 9


def test_a_start_that_was_killed_early_is_repeated(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml").write_text("half")
    opened(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "yaml"


def test_two_jobs_do_not_share_a_directory(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(RunError, match="in use by a running job"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_rewinding_drops_later_lines_and_one_that_was_cut_short(tmp_path):
    run = opened(tmp_path)
    rows = [{"step": step, "loss": step / 3} for step in (1, 2, 3)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    assert run.rows() == rows
    run.rewind(2)
    assert run.rows() == rows[:2]
    assert run.metrics.read_text().endswith("\n")


CPU = {"device": "cpu", "packages": {"torch": "2.15.0"}, "cuda": None, "tf32_matmul": False, "tf32_cudnn": False}
GPU = {
    "device": "NVIDIA A100",
    "packages": {"torch": "2.15.0"},
    "cuda": "13.2",
    "tf32_matmul": True,
    "tf32_cudnn": True,
}


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (GPU, GPU, None),
        (GPU, GPU | {"device": "NVIDIA H100"}, "the device from NVIDIA A100 to NVIDIA H100 changed"),
        (CPU, CPU | {"packages": {"torch": "2.16.0"}}, "torch from 2.15.0 to 2.16.0 changed"),
        (GPU | {"tf32_matmul": False}, GPU, "TF32 in matrix products from off to on changed"),
        ({key: value for key, value in CPU.items() if not key.startswith("tf32")}, CPU, None),
        ({"device": "NVIDIA A100", "tf32_cudnn": True}, GPU, "TF32 in matrix products from off to on changed"),
        (CPU, GPU, "the device from cpu to NVIDIA A100, TF32 in matrix products .*, TF32 in convolutions .* changed"),
    ],
)
def test_other_conditions_than_at_the_last_start_give_one_line(before, now, words):
    lines = environment_changes(before, now)
    assert [bool(re.match(f"note: since the last start {words}", line)) for line in lines] == [True] * bool(words)


def test_the_conditions_of_a_start_are_compared_with_the_last(tmp_path, monkeypatch):
    for version, lines in (("2.15.0", 0), ("2.15.0", 0), ("2.16.0", 1)):
        run = opened(tmp_path)
        monkeypatch.setattr(run_dir, "environment", lambda *_, v=version: CPU | {"packages": {"torch": v}})
        run.record_environment(1, torch.device("cpu"), "float32")
        assert len(run.environment_changes) == lines
        run.close()
    with open(tmp_path / "environment.jsonl", "a") as file:
        file.write('{"device": "cp')
    run = opened(tmp_path)
    run.record_environment(1, torch.device("cpu"), "float32")
    assert run.environment_changes == []
    run.close()
