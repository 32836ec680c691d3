"""The configuration: what is refused, in which words, and that a snapshot is read back."""

import errno

import pytest
import yaml

from fss.config import CONFIGS, PretrainJob, command, parse, snapshot
from fss.errors import ConfigError, UserError

RECIPES = sorted((CONFIGS / "pretrain").glob("*.yaml"))


def job(*argv: str) -> PretrainJob:
    return parse(PretrainJob, list(argv), prog="launch/pretrain_prior.py", default="pretrain/embedded.yaml")


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
        (["--checkpoint.keep", "0"], ["checkpoint.keep is 0", "at least 1"]),
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


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_read_and_its_snapshot_gives_the_same_job(path, tmp_path):
    one = job("--config", str(path))
    (tmp_path / "config.yaml").write_text(snapshot(one))
    assert job("--config", str(tmp_path / "config.yaml")) == one


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_holds_only_what_differs_and_no_place(path):
    content = yaml.safe_load(path.read_text())
    defaults = yaml.safe_load(snapshot(PretrainJob()))
    for group, values in content.items():
        for key, value in values.items():
            assert key not in ("shards", "dir", "device", "world"), "places belong on the command line"
            if (group, key) not in (("method", "superpixels"), ("optim", "epochs")):    # stated even where default
                assert defaults[group][key] != value, f"{group}.{key} is the default"


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


def test_a_users_error_is_one_line_and_exit_code_2(capsys):
    @command
    def main(argv):
        raise UserError("the mask of a.jpg is 3x4: make it 5x6")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: the mask of a.jpg is 3x4: make it 5x6\n"


def test_a_full_disk_is_one_line_too(capsys):
    @command
    def main(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")

    assert main([]) == 2
    assert "runs/a/metrics.jsonl" in capsys.readouterr().err
