"""Follows a command of a page to the point where work begins.

Nothing is trained: a launcher runs in this process until it has parsed its job. Weights that a command names are
replaced by a small file with the header of the method.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser

import fss.config
from fss.config import parse
from fss.methods import METHODS
from fss.nn.exports import ExportHeader, save_export
from tests.support.doc_pages import words
from tests.support.places import ROOT

OURS = ("bench/", "configs/", "docs/", "fss/", "launch/", "shards/", "slurm/", "tests/")
MADE = ("slurm/logs/", "fss/methods/projected.py", "configs/meta/projected.yaml")  # below OURS, but not shipped
SBATCH = ("--array", "--cpus-per-task", "--nodes")  # each with a value
ELSEWHERE = ("apt-get", "cd", "export", "git", "tail", "tensorboard", "wandb")  # programs of others


class Reached(Exception):
    """A program has read its options and would now begin to work."""

    def __init__(self, job: Any) -> None:
        self.job = job


class Checker:
    """Raises AssertionError if a command would be refused."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """folder: for the files that replace weights."""
        self.folder = folder
        self.monkeypatch = monkeypatch
        monkeypatch.chdir(ROOT)

    def line(self, command: str) -> None:
        """Check a line of shell, command by command."""
        for simple in words(command):
            settings = list(itertools.takewhile(lambda word: re.match(r"[A-Z_]+=", word), simple))
            self.simple(simple[len(settings) :], dict(word.split("=", 1) for word in settings))

    def simple(self, command: list[str], settings: dict[str, str]) -> None:
        """Check one program and its words; a word that is a path of the checkout must exist."""
        for word in command:
            if word.startswith(OURS) and not word.startswith(MADE):
                assert any(ROOT.glob(word)), f"there is no {word}"
        match command:
            case ["make", *targets]:
                for target in targets:
                    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"no target {target}"
            case ["python", "-m", module, *options]:
                self.script(Path(f"{module.replace('.', '/')}.py"), options)
            case ["python", script, *options]:
                self.script(Path(script), options)
            case ["accelerate", "launch", *options]:
                self.accelerate(options)
            case ["sbatch", *options]:
                self.sbatch(options, settings)
            case ["slurm/pipeline.sh", "--dry-run", *_]:
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            case ["pip", "install", "-e", package]:
                extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
                assert re.fullmatch(rf"\.\[({'|'.join(extras)})\]", package), f"no such extra: {package}"
            case ["source", ".venv/bin/activate"] | ["pytest", *_]:
                pass
            case ["source" | "$EDITOR", file]:
                assert Path(file).is_file()
            case [program, *_]:
                assert program in ELSEWHERE, f"{program} is a program that this test cannot check: add a case for it"

    def accelerate(self, options: list[str]) -> None:
        """Check accelerate's own options, those of the script, and that both give the same number of ranks."""
        options = ["0" if re.fullmatch(r"\$[A-Z_]+", word) else word for word in options]
        asked = reached(lambda: launch_command_parser().parse_args(options))
        config = yaml.safe_load(Path(asked.config_file).read_text()) if asked.config_file else {}
        job = self.script(Path(asked.training_script), asked.training_script_args)
        ranks = asked.num_processes or config.get("num_processes")
        promised = job.run.world_size if hasattr(job, "run") else None
        assert promised in (None, ranks), f"{ranks} ranks are started and run.world_size promises {promised}"

    def sbatch(self, options: list[str], settings: dict[str, str]) -> None:
        """Check sbatch's own options and, after the script, those of the launcher that the script starts first."""
        while options[0].startswith("--"):
            assert options[0].split("=")[0] in SBATCH, f"sbatch {options[0]}: add it to SBATCH"
            options = options[1 if "=" in options[0] else 2 :]
        script, *own = options
        lines = [line for line in (ROOT / script).read_text().splitlines() if not line.startswith("#")]
        if own and (launchers := re.findall(r"launch/\w+\.py", "\n".join(lines))):
            recipe = ["--config", f"configs/meta/{settings['METHOD']}_coco.yaml"] if "METHOD" in settings else []
            self.script(Path(launchers[0]), [*recipe, *own])

    def script(self, path: Path, options: list[str]) -> Any:
        """The job, or the parsed arguments, that a program of this project parses from its options; None for --help."""
        assert path.is_file(), f"there is no {path}"
        options = [
            self.stand_in(word) if before == "--weights" else word
            for before, word in zip(["", *options], options, strict=False)
        ]
        source = path.read_text()
        if path.parts[0] == "launch" and re.search(r"from fss\.config import .*\bparse\b", source):
            module = importlib.import_module(f"launch.{path.stem}")
            with self.monkeypatch.context() as patched:
                for place in (module, fss.config):  # some launchers import it inside main
                    patched.setattr(place, "parse", lambda *given, **how: stop(parse(*given, **how)), raising=False)
                return reached(lambda: module.main(options))
        if "parse_args" not in source:
            return None
        with self.monkeypatch.context() as patched:
            original = argparse.ArgumentParser.parse_args
            patched.setattr(argparse.ArgumentParser, "parse_args", lambda self, *given: stop(original(self, *given)))
            patched.setattr(sys, "argv", [str(path), *options])
            patched.syspath_prepend(path.parent)
            return reached(lambda: runpy.run_path(str(path), run_name="__main__"))

    def stand_in(self, weights: str) -> str:
        """An export with the header of the method that the path names, or of QGNet."""
        name = next((name for name in METHODS if name in weights), "qgnet")
        path = self.folder / f"{name}.safetensors"
        header = ExportHeader(method=name, config=asdict(METHODS[name].Config()))
        save_export(path, {"x": torch.zeros(1)}, header)
        return str(path)


def stop(job: Any) -> None:
    raise Reached(job)


def reached(call: Callable[[], Any]) -> Any:
    """The job that `call` reads from its options. Raises AssertionError with the last line of its error output."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            result = call()
    except Reached as reached_job:
        return reached_job.job
    except SystemExit as exit_:
        assert not exit_.code, errors.getvalue().strip().splitlines()[-1]
        return None
    assert result != 2, errors.getvalue().strip().splitlines()[-1]
    return result
