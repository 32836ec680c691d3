"""The configuration: what is refused, in which words, and that a snapshot is read back."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from fss.config import CONFIGS, BaseJob, EvalJob, MetaTrainJob, PretrainJob, parse, snapshot
from fss.errors import ConfigError, WeightsError
from fss.methods.prototype import PrototypeConfig
from fss.methods.qgnet.config import QGNetConfig

JOBS = {
    "pretrain": (PretrainJob, "launch/pretrain_prior.py", "embedded.yaml"),
    "base": (BaseJob, "launch/train_base.py", "embedded.yaml"),
    "meta": (MetaTrainJob, "launch/meta_train.py", "embedded.yaml"),
    "evaluate": (EvalJob, "launch/evaluate.py", "default.yaml"),
}
RECIPES = sorted(path for folder in JOBS for path in (CONFIGS / folder).glob("*.yaml"))


def read(folder: str, *argv: str):
    """The job of the launcher whose recipes are in configs/`folder`."""
    schema, prog, default = JOBS[folder]
    return parse(schema, list(argv), prog=prog, default=f"{folder}/{default}")


def job(*argv: str) -> PretrainJob:
    return read("pretrain", *argv)


def meta(*argv: str) -> MetaTrainJob:
    return read("meta", *argv)


def evaluation(*argv: str) -> EvalJob:
    return read("evaluate", *argv)


def file(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def test_without_a_config_the_embedded_default_runs():
    assert job().data.shards is None
    assert job().method.backbone == "resnet18"
    assert job().run.dir == "runs/embedded"


def test_options_come_over_files_and_files_over_defaults(tmp_path):
    (tmp_path / "one.yaml").write_text("optim: {lr: 3e-1, epochs: 7}\n")
    (tmp_path / "two.yaml").write_text("optim: {epochs: 9}\n")
    found = job("--config", str(tmp_path / "one.yaml"), "--config", str(tmp_path / "two.yaml"), "--optim.lr", "0.5")
    assert (found.optim.lr, found.optim.epochs, found.optim.momentum) == (0.5, 9, 0.9)
    assert found.run.dir == "runs/two"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--method.lrr", "3"], ["unknown key method.lrr", "optim.lr"]),
        (["--mthod.queue", "3"], ["unknown key mthod.queue", "method.queue"]),
        (["--optim.lr", "fast"], ["optim.lr", "'fast'", "float"]),
        (["--run.precision", "fp8"], ["run.precision", "'fp8'", "bf16"]),
        (["--data.batch", "0"], ["data.batch is 0", "at least 1"]),
        (["--optim.accumulate", "0"], ["optim.accumulate is 0", "at least 1"]),
        (["--checkpoint.keep_last", "0"], ["checkpoint.keep_last is 0", "at least 1"]),
        (["--method.global_loss", "false", "--method.local", "none"], ["method.global_loss", "method.local"]),
        (["--config", "absent.yaml"], ["absent.yaml", "does not exist"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(argv, words):
    with pytest.raises(ConfigError) as refused:
        job(*argv)
    text = str(refused.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


WRONG_FILES = ["method: {queu: 3}", "metod: {queue: 3}", "method: {queue: many}", "just words", "a: [b"]


@pytest.mark.parametrize("content", WRONG_FILES)
def test_a_wrong_file_is_refused(tmp_path, content):
    (tmp_path / "wrong.yaml").write_text(content)
    with pytest.raises(ConfigError) as refused:
        job("--config", str(tmp_path / "wrong.yaml"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_recipe_is_read_and_its_snapshot_gives_the_same_job(path, tmp_path):
    one = read(path.parent.name, "--config", str(path))
    again = file(tmp_path / "config.yaml", snapshot(one))
    assert read(path.parent.name, "--config", again) == one


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_recipe_holds_only_what_differs_and_no_place(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    method = content.get("method", {}).get("name")
    nothing = file(tmp_path / "nothing.yaml", f"method: {{name: {method}}}" if method else "run: {dir: null}")
    defaults = yaml.safe_load(snapshot(read(path.parent.name, "--config", nothing)))
    stated = (("method", "superpixels"), ("method", "name"), ("optim", "epochs"))  # even where they are the default
    for group, values in content.items():
        for key, value in values.items():
            assert key not in ("shards", "dir", "device", "world_size"), "places belong on the command line"
            assert not key.endswith("weights"), "places belong on the command line"
            if (group, key) not in stated:
                assert defaults[group][key] != value, f"{group}.{key} is the default"


@pytest.mark.parametrize("words", [["--method", "qgnet"], ["--method=qgnet"], ["--method.name", "qgnet"], []])
def test_a_method_is_typed_by_its_name(words):
    found = meta(*words, "--method.dim", "24")
    assert type(found.method) is QGNetConfig and found.method.dim == 24
    assert found.method.backbone == "resnet18", "the embedded default is for this method"


def test_a_file_names_the_method_too(tmp_path):
    path = file(tmp_path / "mine.yaml", "method: {name: prototype, backbone: resnet18}")
    found = evaluation("--config", path)
    assert found.method == PrototypeConfig(backbone="resnet18")
    assert found.run.dir == "runs/evaluate_mine"


def test_the_defaults_of_a_meta_training_are_the_papers(tmp_path):
    found = meta("--config", file(tmp_path / "a.yaml", "method: {name: qgnet}"))
    assert (found.data.batch, found.optim.lr, found.optim.schedule, found.optim.epochs) == (4, 0.025, "poly", 200)
    assert (found.method.size, found.episodes.shots, found.run.dir) == (473, 1, "runs/meta_a")


def test_every_method_has_its_own_options(tmp_path):
    nothing = file(tmp_path / "nothing.yaml", "run: {threads: 2}")
    assert evaluation("--config", nothing, "--method", "prototype", "--method.features", "block4")
    with pytest.raises(ConfigError, match=r"unknown key method\.features"):
        evaluation("--config", nothing, "--method", "qgnet", "--method.features", "block4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "qgnt"], "method.name qgnt is not for launch/meta_train.py: give qgnet"),
        (["--method", "prior"], "method.name prior is not for launch/meta_train.py: give qgnet"),
        (["--method", "prototype"], "method.name prototype needs no training: evaluate it with launch/evaluate.py"),
        (["--config", "PROTOTYPE"], "method.name prototype needs no training: evaluate it with launch/evaluate.py"),
    ],
)
def test_a_method_that_the_job_cannot_use_is_refused(tmp_path, words, message):
    path = file(tmp_path / "prototype.yaml", "method: {name: prototype}")
    with pytest.raises(ConfigError) as refused:
        meta(*[path if word == "PROTOTYPE" else word for word in words])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_yaml_takes_off_for_false_and_the_error_has_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"method\.prior_map .* in quotes"):
        meta("--config", file(tmp_path / "a.yaml", "method: {name: qgnet, prior_map: off}"))


@pytest.fixture
def export(tmp_path) -> str:
    """The header of a QGNet that was trained with options of its own."""
    trained = QGNetConfig(size=97, backbone="resnet18", prior_map="off", dim=24)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "best.safetensors"
    save_file({}, path, {"method": "qgnet", "config": json.dumps(asdict(trained))})
    return str(path)


def test_weights_bring_their_method_and_its_options(export):
    found = evaluation("--weights", export)
    assert found.method == QGNetConfig(size=97, backbone="resnet18", prior_map="off", dim=24)
    assert found.run.dir == "runs/evaluate_run_best"
    assert evaluation("--weights", export, "--method", "qgnet", "--method.aux_weight", "0.5").method.aux_weight == 0.5


def test_a_file_may_name_the_weights(export, tmp_path):
    assert evaluation("--config", file(tmp_path / "mine.yaml", f"weights: {export}")).method.dim == 24


def test_weights_of_another_method_are_refused(export, tmp_path):
    with pytest.raises(ConfigError, match="--method has prototype but the file of --weights has qgnet"):
        evaluation("--weights", export, "--method", "prototype")
    prior = tmp_path / "prior.safetensors"
    save_file({}, prior, {"method": "prior"})
    with pytest.raises(ConfigError, match="holds prior: give what a run of"):
        evaluation("--weights", str(prior))
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        evaluation("--weights", file(tmp_path / "text.safetensors", "text"))


@pytest.mark.parametrize("folder", JOBS)
def test_every_job_explains_itself(folder, capsys):
    for option in ("--help", "--print_config"):
        with pytest.raises(SystemExit) as left:
            read(folder, option)
        assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{key} " in text for key in ("run.dir", "data.shards", "method.backbone", "log.every"))
    assert f"Any of {', '.join(JOBS[folder][0].methods)}" in " ".join(text.split())


def test_help_names_every_field_and_print_config_prints_yaml(capsys):
    with pytest.raises(SystemExit) as left:
        job("--help")
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "--method.local_queue" in text and "negatives of a patch" in text
    with pytest.raises(SystemExit) as left:
        job("--print_config", "--optim.lr", "0.7")
    assert left.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["optim"]["lr"] == 0.7
