"""Files of the version before the renamed options resume, load, continue and read. See README.md."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from fss import compat
from fss.compat import OPTIONS, current_options
from fss.config import BaseJob, EvalJob, MetaTrainJob, PretrainJob, parse, snapshot
from fss.methods.base import StepContext
from fss.nn.exports import read_header
from fss.provenance import code_version, digest
from fss.tracking.identity import identity_of
from fss.tracking.run_dir import RunDir, last_environment
from fss.train.checkpoint import CheckpointConfig, Checkpoints, State
from fss.train.optim import OptimConfig, build_optimizer
from launch import evaluate, report
from shards.check import check
from shards.read import ShardSet
from tests.support.toy import Toy, batches

FILES = Path(__file__).resolve().parent / "files"
SCHEMAS = {"prior": PretrainJob, "base": BaseJob, "qgnet": MetaTrainJob, "msanet": MetaTrainJob, "evaluation": EvalJob}
TRAINED = [name for name in SCHEMAS if name != "evaluation"]
EVALUATION = (
    "--method prototype --method.backbone resnet18 --method.size 33 --episodes.scheme interleaved --eval.episodes 6 "
    "--eval.seeds [7] --eval.min_area 0 --run.device cpu --run.world_size 1 --run.threads 1 --log.wandb off "
    "--log.every 1 --data.workers 0"
).split()


@pytest.fixture(autouse=True)
def beside_the_files(monkeypatch):
    """The paths in the recorded configurations are relative."""
    monkeypatch.chdir(FILES)


def toy_state() -> State:
    torch.manual_seed(0)
    method = Toy(4)
    return State(name="toy", method=method, optimizer=build_optimizer(method, OptimConfig(lr=0.1)))


def test_a_checkpoint_resumes_and_continues(tmp_path, context):
    shutil.copytree("checkpoints/step_00000003", tmp_path / "step_00000003")
    state = toy_state()
    assert Checkpoints(tmp_path, CheckpointConfig(), context).resume(state) == (3, [])
    recorded = load_file("checkpoints/step_00000003/state.safetensors")
    recorded_state = {name: tensor for name, tensor in recorded.items() if not name.startswith("rng/")}
    assert state.tensors().keys() == recorded_state.keys()
    assert all(tensor.equal(recorded_state[name]) for name, tensor in state.tensors().items())
    assert torch.get_rng_state().equal(recorded["rng/0/cpu"])

    micro_batches = batches(3, 0, 1)
    for step in (3, 4):
        loss, _ = state.method.loss(next(micro_batches), StepContext(step=step))
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.method.after_step(StepContext(step=step))
    expected = load_file("checkpoints/step_00000005/state.safetensors")
    for name, tensor in state.tensors().items():
        assert tensor.allclose(expected[name], rtol=1e-5, atol=1e-6), name  # another CPU rounds differently
    assert torch.get_rng_state().equal(expected["rng/0/cpu"])


@pytest.mark.parametrize("name", TRAINED)
def test_the_header_of_an_export_is_read(name):
    path = Path(name) / f"{name}.safetensors"
    header = read_header(path)
    with safe_open(path, "pt") as file:
        table = file.metadata()
    assert (header.method, header.data, header.images, header.steps) == (name, "rectangles", 8, 2)
    assert header.code == table["code"] and header.epochs == float(table["epochs"])
    assert header.job == json.loads(table["job"])
    assert header.config == (json.loads(table["config"]) if "config" in table else None)
    known = header.table()
    assert {key for key in table if key not in known} <= {key for key, text in table.items() if text in ("null", "{}")}
    if name == "prior":
        assert (header.images_seen, header.knn, header.encoder) == (8, 0.5, "momentum")
    else:
        assert (header.scheme, header.fold, header.novel, header.held_out) == ("interleaved", 0, [1], [])
    if name == "base":
        assert header.class_names == {2: "green", 3: "blue", 4: "yellow"} and header.best_miou is None
    if name == "qgnet":
        assert header.prior is not None
        assert header.prior == read_header(Path("prior/prior.safetensors")).__class__.parse(json.loads(table["prior"]))
        assert (header.prior.backbone, header.prior.images_seen, header.prior.recipe["queue"]) == ("resnet18", 8, 8)
    if name == "msanet":
        assert header.base is not None and header.base.class_names == {2: "green", 3: "blue", 4: "yellow"}


def test_an_empty_inner_header_is_none():
    header = read_header(Path("qgnet/qgnet.safetensors"))
    assert type(header).parse(header.table() | {"prior": "{}"}).prior is None


def recorded_options(name: str) -> dict:
    return json.loads((Path(name) / "run.json").read_text())


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_configuration_is_the_same_run_under_the_names_of_today(name, capsys):
    """Renamed options are accepted with a line each, and options added since do what the earlier version did."""
    file = Path(name) / "config.yaml"
    job = parse(SCHEMAS[name], ["--config", str(file)], prog="test")
    messages = capsys.readouterr().err.splitlines()
    typed = yaml.safe_load(file.read_text())
    renamed = {old: new for old, new in OPTIONS.items() if old.split(".")[1] in typed.get(old.split(".")[0], {})}
    assert renamed and sorted(messages) == sorted(
        f"note: option {old} is now called {new}" for old, new in renamed.items()
    )
    config = asdict(job)
    for old, new in renamed.items():
        (group, key), (_, earlier) = new.split("."), old.split(".")
        assert json.loads(json.dumps(config[group][key])) == typed[group][earlier]

    before = current_options(recorded_options(name))
    weights = {key for key, value in before.items() if str(value).startswith("sha256 ")}
    for key in weights:  # by what their files contain, and these contain no weights here
        config["method"][key.removeprefix("method.")] = None
    now = json.loads(json.dumps(identity_of(config, manifest=digest(ShardSet(Path("shards")).manifest.content()))))
    computed = {"code", "weights", "episodes", "run.threads", "run.device"} if name == "evaluation" else set()
    same = before.keys() - computed - weights
    assert {key: before[key] for key in same} == {key: now.get(key) for key in same}
    if name != "evaluation":  # whose options that change no score are left out
        assert now.keys() == before.keys()


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_directory_is_accepted_for_its_own_options(tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(name, folder)
    (folder / "checkpoints" / "step_00000002").mkdir(parents=True)
    job = parse(SCHEMAS[name], ["--config", f"{name}/config.yaml"], prog="test")
    run = RunDir(folder)
    identity = current_options(recorded_options(name))
    run.open(identity, snapshot(job))
    run.close()
    assert last_environment(folder)["world_size"] == 1
    assert [row["step"] for row in run.rows() if "loss" in row] == [1, 2]
    if name == "prior":
        assert [row["knn/chance_level"] for row in run.rows() if "knn/top1" in row] == [0.5, 0.5]


@pytest.mark.parametrize(("old", "new"), OPTIONS.items())
def test_an_earlier_option_is_accepted_on_the_command_line(old, new, capsys, monkeypatch):
    values = {"run.start_from": "other.safetensors", "augment.keep": "0.5", "validate.share": "0.25"}
    group, key = new.split(".")
    for schema, recipe, default in ((PretrainJob, "prior", "pretrain/embedded"), (BaseJob, "base", "base/embedded")):
        if group not in yaml.safe_load((Path(recipe) / "config.yaml").read_text()):
            continue
        value = values.get(old, "3")
        for words in ([f"--{old}", value], [f"--{old}={value}"]):
            monkeypatch.setattr(compat, "_reported", set())  # as in a process of its own
            job = parse(schema, words, prog="test", default=f"{default}.yaml")
            assert capsys.readouterr().err == f"note: option {old} is now called {new}\n"
            assert str(getattr(getattr(job, group), key)) == value


@pytest.fixture
def evaluation(tmp_path) -> Path:
    """The recorded evaluation, as if the code of today had begun it: counts of two versions are not added."""
    folder = tmp_path / "run"
    shutil.copytree("evaluation", folder)
    options = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(options | {"code": code_version()}))
    return folder


def episodes(folder: Path) -> dict[tuple[int, int], dict]:
    rows = [json.loads(line) for path in folder.glob("episodes/*.jsonl") for line in path.read_text().splitlines()]
    return {(row["seed"], row["number"]): row for row in rows}


def test_a_cut_evaluation_continues(tmp_path, evaluation, capsys):
    recorded = evaluation / "episodes" / "rank_00000.jsonl"
    lines = recorded.read_text().splitlines(keepends=True)
    recorded.write_text("".join(lines[:4]))
    assert evaluate.main([*EVALUATION, "--data.shards", "shards", "--run.dir", str(evaluation)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "did not record device, torch, tf32_matmul, tf32_cudnn: they could not be compared" in printed
    before, after = episodes(Path("evaluation")), episodes(evaluation)
    assert recorded.read_text().splitlines(keepends=True)[:4] == lines[:4], "what was measured stays"
    assert after.keys() == before.keys()
    for number, row in after.items():
        same = ("class_id", "query", "supports")
        assert {name: row[name] for name in same} == {name: before[number][name] for name in same}
        (intersections, unions), (expected, _) = row["counts"], before[number]["counts"]
        assert intersections == pytest.approx(expected, abs=30) and len(unions) == 2
    scores, earlier = (json.loads((f / "results.json").read_text()) for f in (evaluation, Path("evaluation")))
    assert scores["miou"]["mean"] == pytest.approx(earlier["miou"]["mean"], abs=0.02)


def test_an_evaluation_of_another_version_is_not_mixed_with_this_one(tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree("evaluation", folder)
    assert evaluate.main([*EVALUATION, "--data.shards", "shards", "--run.dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "holds another run: code is '9a44d42e7848' there" in error and "differences" not in error


def test_a_finished_evaluation_is_compared(tmp_path):
    assert report.main(["evaluation", "--out", str(tmp_path / "page")]) == 0
    page = "".join(path.read_text() for path in (tmp_path / "page").glob("*.md"))
    assert "prototype" in page and "3.99" in page


def test_a_packed_set_opens_and_is_whole():
    assert check(Path("shards")) == []
    shards = ShardSet(Path("shards"))
    assert len(shards.manifest.samples) == 8
    assert shards.manifest.classes == {1: "red", 2: "green", 3: "blue", 4: "yellow"}
