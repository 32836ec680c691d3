"""Every entry of every table of earlier names: accepted, translated, and of an option reported once on one rank."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import yaml

from fss import compat
from fss.compat import ADDED_OPTIONS, OPTIONS, current_arguments, current_configuration, current_fields, current_options
from fss.config import BaseJob, EvalJob, MetaTrainJob, PretrainJob, parse
from fss.errors import ConfigError
from fss.evaluate.record import EpisodeRecord
from fss.report.comparison_page import read
from fss.tracking.run_dir import RunDir, last_environment
from fss.train.checkpoint import read as read_checkpoint

FILES = Path(__file__).resolve().parent / "files"
JOBS = (PretrainJob, BaseJob, MetaTrainJob, EvalJob)
OTHER_VALUES = {"run.init_from": "a.safetensors", "augment.min_foreground": 0.25, "validate.fraction": 0.25}


def option(config: dict, name: str) -> object:
    group, key = name.split(".")
    return config[group][key]


@cache
def defaults(schema: type) -> dict:
    return asdict(parse(schema, [], prog="test"))


def jobs_with(name: str) -> list[type]:
    """The jobs that have an option."""
    group, key = name.split(".")
    jobs = [schema for schema in JOBS if key in defaults(schema).get(group, {})]
    assert jobs, f"no job has {name}"
    return jobs


@pytest.mark.parametrize(("old", "new"), OPTIONS.items())
def test_an_earlier_option_is_accepted_by_every_job_that_has_it(old, new, tmp_path, capsys):
    value = OTHER_VALUES.get(new, 3)
    group, key = old.split(".")
    file = tmp_path / "earlier.yaml"
    file.write_text(yaml.safe_dump({group: {key: value}}))
    forms = [[f"--{old}", str(value)], [f"--{old}={value}"], ["--config", str(file)]]
    for place, schema in enumerate(jobs_with(new)):
        for words in forms if place == 0 else forms[:1]:  # parsing is slow, and the same for every job
            assert option(asdict(parse(schema, words, prog="test")), new) == value
    assert capsys.readouterr().err == f"note: option {old} is now called {new}\n"


def test_the_value_of_an_option_may_equal_an_earlier_name():
    assert current_arguments(["--run.dir", "run.world"]) == ["--run.dir", "run.world"]


@pytest.mark.parametrize(("environment", "printed"), [({"RANK": "1"}, False), ({"LOCAL_RANK": "2"}, False), ({}, True)])
def test_rank_0_alone_reports_an_earlier_option(monkeypatch, capsys, environment, printed):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert current_arguments(["--run.world", "2"]) == ["--run.world_size", "2"]
    assert bool(capsys.readouterr().err) == printed


@pytest.mark.parametrize(("old", "new"), OPTIONS.items())
def test_both_names_with_different_values_are_refused(old, new):
    group, key = old.split(".")
    name = new.split(".")[1]
    sentence = rf"{new} is given twice, as 3 and under its earlier name {old} as 2: leave {old} out"
    with pytest.raises(ConfigError, match=sentence):
        current_arguments([f"--{old}", "2", f"--{new}=3"])
    with pytest.raises(ConfigError, match=sentence):
        current_configuration({group: {key: 2, name: 3}})
    assert current_arguments([f"--{old}", "2", f"--{new}=2"]) == [f"--{new}", "2", f"--{new}=2"]
    assert current_configuration({group: {key: 2, name: 2}}) == {group: {name: 2}}


def test_values_of_both_names_are_compared_as_values():
    words = ["--validate.share=0.30", "--validate.fraction=0.3"]
    assert current_arguments(words) == ["--validate.fraction=0.30", "--validate.fraction=0.3"]
    with pytest.raises(ConfigError, match="given twice"):
        current_arguments(["--run.start_from=a: b: c", "--run.init_from=a: b"])  # no YAML


def test_an_earlier_name_written_flat_in_a_file(tmp_path):
    file = tmp_path / "flat.yaml"
    file.write_text("run.world: 2\noptim.lr_batch: 8\n")
    job = parse(PretrainJob, ["--config", str(file)], prog="test")
    assert (job.run.world_size, job.optim.reference_batch_size) == (2, 8)
    with pytest.raises(ConfigError, match=r"run\.world_size is given twice"):
        current_configuration({"run.world": 2, "run.world_size": 3})


def test_an_earlier_name_in_the_value_of_a_group_is_refused_with_its_name_of_today():
    with pytest.raises(ConfigError, match=r"optim\.lr_batch: it is now called optim\.reference_batch_size"):
        parse(PretrainJob, ["--optim", "{lr_batch: 8}"], prog="test")


def test_both_names_in_a_file_are_refused_by_the_parser(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text("run: {world: 2, world_size: 3}")
    with pytest.raises(ConfigError, match=r"run\.world_size is given twice"):
        parse(PretrainJob, ["--config", str(file)], prog="test")


@pytest.mark.parametrize(("old", "new"), OPTIONS.items())
def test_the_identity_of_a_run_is_the_same_under_both_names(old, new, tmp_path):
    run = RunDir(tmp_path / "run")
    run.open({old: 2, "run.seed": 1}, "")
    run.close()
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    again = RunDir(tmp_path / "run")
    again.open(current_options({old: 2, "run.seed": 1}), "")
    again.close()
    assert current_options({old: 2})[new] == 2


@pytest.mark.parametrize("name", ADDED_OPTIONS)
def test_an_option_that_was_added_has_the_value_that_does_what_earlier_versions_did(name):
    beginning, expected = ADDED_OPTIONS[name]
    assert current_options({f"{beginning}any": 1})[name] == expected
    assert name not in current_options({"other.any": 1})
    for schema in jobs_with(name):
        value = option(defaults(schema), name)
        assert json.loads(json.dumps(value)) == expected


def checkpoint_fields(folder: Path) -> dict:
    return read_checkpoint(FILES / "checkpoints" / "step_00000003")[0]


def environment_fields(folder: Path) -> dict:
    (folder / "environment.jsonl").write_text(json.dumps(dict.fromkeys(compat.ENVIRONMENT, 2)))
    return last_environment(folder)


def episode_fields(folder: Path) -> dict:
    record = EpisodeRecord(FILES / "evaluation" / "episodes", 0)
    return asdict(next(iter(record.begin().values())))


def results_fields(folder: Path) -> dict:
    return read(FILES / "evaluation").results


def report_fields(folder: Path) -> dict:
    return current_fields(json.loads((FILES / "evaluation" / "report" / "report.json").read_text()), compat.REPORT)


def cell_fields(folder: Path) -> dict:
    return asdict(read(FILES / "evaluation").cell)


def log_fields(folder: Path) -> dict:
    (folder / "metrics.jsonl").write_text(json.dumps(dict.fromkeys(compat.LOG_KEYS, 0.1)))
    return RunDir(folder).rows()[0]


READERS = {
    "CHECKPOINT": checkpoint_fields,
    "ENVIRONMENT": environment_fields,
    "EPISODE": episode_fields,
    "RESULTS": results_fields,
    "REPORT": report_fields,
    "CELL": cell_fields,
    "LOG_KEYS": log_fields,
}


@pytest.mark.parametrize("table", READERS)
def test_whatever_reads_a_file_reads_its_earlier_fields(table, tmp_path):
    fields = READERS[table](tmp_path)
    for old, new in getattr(compat, table).items():
        assert new in fields and old not in fields


def test_every_table_is_tested():
    tables = {name for name, value in vars(compat).items() if name.isupper() and isinstance(value, dict)}
    assert tables == {*READERS, "OPTIONS", "ADDED_OPTIONS"}
