"""The run directory: what ran, where, with which configuration, and what became of it.

config.yaml          the resolved configuration; with another --run.dir, `--config config.yaml` repeats the run
run.json             the identity of the run: what must be equal for a resume
environment.jsonl    one line a start: versions, git commit, ranks, machine, command
metrics.jsonl        one line a logged step; a resumed run drops the lines past its checkpoint
status.json          running, interrupted, finished or failed
checkpoints/         of a training, see fss.train.checkpoint
episodes/            of an evaluation, see fss.evaluate.record
episodes.tsv         which they are, as a list that `--eval.episode_list` reads
results.json         its scores, and the protocol that made them
NAME.safetensors     the last weights of method NAME, for other jobs; best.safetensors: those that validated best
validation/          pictures of the same few episodes at every validation
report/              the page to look at
wandb/, tensorboard/ what viewers read, see fss.tracking.log; wandb.id and *.sent: under which name, and what they got
nonfinite/           evidence of a NaN or infinite loss: batch, keys, report
"""

import fcntl
import json
import time
from pathlib import Path
from typing import IO, Literal

import torch

from fss.compat import ENVIRONMENT, current_fields, current_log_keys, current_options
from fss.errors import RunError
from fss.provenance import environment
from shards.format import write_whole


class RunDir:
    """A run directory, opened by rank 0 only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"
        self.report = folder / "report"
        self._lock: IO | None = None

    def open(self, identity: dict, config_yaml: str) -> None:
        """Create the directory, or make sure that it holds this very run.

        identity: flat {key: value} of everything that decides the result. Raises RunError where the directory holds
        something else, or is in use by a running job.
        """
        identity = json.loads(json.dumps(identity))  # as it is read back: a tuple is a list
        record = self.folder / "run.json"
        ours = {".lock", "config.yaml"}  # what a start that was killed before run.json may have left
        if not record.exists() and self.folder.exists() and {p.name for p in self.folder.iterdir()} - ours:
            raise RunError(f"run.dir {self.folder} is not empty and not a run directory: choose another --run.dir")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if record.exists() and self.begun():
            self._check_identity(current_options(json.loads(record.read_text())), identity)
        else:  # nothing was learned yet, so a start that was refused or broke off may be corrected in place
            write_whole(self.folder / "config.yaml", config_yaml.encode())
            write_whole(record, json.dumps(identity, indent=1).encode())
        self.report.mkdir(exist_ok=True)

    def begun(self) -> bool:
        """Whether the directory holds work that must not be mixed with another run's."""
        return any(self.checkpoints.glob("step_*"))

    def _take_lock(self) -> None:
        self._lock = open(self.folder / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"run.dir {self.folder} is in use by a running job: stop it or choose another") from None
        except OSError:  # some network file systems have no locks; the identity is still checked
            pass

    def _check_identity(self, before: dict, now: dict) -> None:
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            key = changed[0]
            raise RunError(
                f"run.dir {self.folder} holds another run: {key} is {before.get(key)!r} there and {now.get(key)!r} here"
                + (f" ({len(changed)} differences)" if len(changed) > 1 else "")
                + ": choose another --run.dir, or repeat the run's own options to go on with it"
            )

    def close(self) -> None:
        """Let another job open the directory."""
        if self._lock:
            self._lock.close()

    def record_environment(self, world_size: int, device: torch.device) -> dict:
        """Append a line to environment.jsonl, and return it."""
        facts = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "world_size": world_size, **environment(device)}
        with open(self.folder / "environment.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\n")
        return facts

    def set_status(self, status: Literal["running", "interrupted", "finished", "failed"]) -> None:
        """Say what became of the run."""
        write_whole(self.folder / "status.json", json.dumps({"status": status}).encode())

    def rows(self) -> list[dict]:
        """The lines of metrics.jsonl; a last line that a kill cut short is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(current_log_keys(json.loads(line)))
            except ValueError:
                break
        return rows

    def rewind(self, step: int) -> None:
        """Drop what was logged past `step`: the run goes on from there."""
        lines = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_whole(self.metrics, "".join(lines).encode())


def last_environment(folder: Path) -> dict:
    """What a run directory recorded of the environment at its last start."""
    lines = (folder / "environment.jsonl").read_text().splitlines()
    return current_fields(json.loads(lines[-1]), ENVIRONMENT)


def resume_command(command: str, world_size: int, device: str) -> str:
    """The command that, typed in the same folder, continues a run that `command` started."""
    several = f"--multi_gpu --num_processes {world_size} " if world_size > 1 else "--num_processes 1 "
    return f"{'ACCELERATE_USE_CPU=true ' if device == 'cpu' else ''}accelerate launch {several}{command}"
