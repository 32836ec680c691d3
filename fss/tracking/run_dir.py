"""The run directory: the configuration of a run, its environment, its log, its status and its files.

config.yaml          the resolved configuration; with another --run.dir, `--config config.yaml` repeats the run
run.json             the identity of the run: what must be equal for a resume
environment.jsonl    one line a start: versions, git commit, ranks, machine, command
metrics.jsonl        one line a logged step; a resumed run drops the lines past its checkpoint
status.json          running, interrupted, finished or failed
checkpoints/         of a training, see fss.train.checkpoint
episodes/            of an evaluation, see fss.evaluate.record
episodes.tsv         the same episodes, as a list that `--eval.episode_list` reads
results.json         its scores and its protocol
NAME.safetensors     the last weights of method NAME, for other jobs; best.safetensors: those of the best validation
validation/          pictures of the same few episodes at every validation
report/              the page to look at
wandb/, tensorboard/ files of the trackers, see fss.tracking.log; wandb.id and *.sent: the id there, the values sent
nonfinite/           dump of a NaN or infinite loss: batch, keys, report
"""

import fcntl
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import torch

from fss.compat import ENVIRONMENT, current_fields, current_log_keys, current_options
from fss.errors import RunError
from fss.provenance import environment
from fss.tracking.identity import CONDITIONS
from shards.format import write_whole

Status = Literal["running", "interrupted", "finished", "failed"]


class RunDir:
    """A run directory, opened by rank 0 only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"
        self.report = folder / "report"
        self.environment_changes: list[str] = []
        self._lock: IO[str] | None = None

    def open(self, identity: dict[str, Any], config_yaml: str) -> list[str]:
        """Create the directory, or check that it contains this very run, and lock it.

        identity: flat {key: value} of everything that decides the result. Returns a sentence if a record of an earlier
        version lacks some of CONDITIONS; they are added to it. Raises RunError if the directory contains something
        else, or is in use by a running job.
        """
        messages = []
        identity = json.loads(json.dumps(identity))  # a tuple becomes a list, as in the file
        record = self.folder / "run.json"
        leftovers = {".lock", "config.yaml"}  # of a start that was killed before run.json
        if not record.exists() and self.folder.exists() and {p.name for p in self.folder.iterdir()} - leftovers:
            raise RunError(f"run.dir {self.folder} is not empty and not a run directory: choose another --run.dir")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._acquire_lock()
        if record.exists() and self.begun():
            before = json.loads(record.read_text())
            missing = [key for key in identity if key.startswith(CONDITIONS) and key not in before]
            self._check_identity(current_options(before), {k: v for k, v in identity.items() if k not in missing})
            if missing:
                messages.append(self._not_compared(missing))
                write_whole(record, json.dumps(before | {key: identity[key] for key in missing}, indent=1).encode())
        else:  # there is no checkpoint yet: a start that failed may be repeated with other options
            write_whole(self.folder / "config.yaml", config_yaml.encode())
            write_whole(record, json.dumps(identity, indent=1).encode())
        self.report.mkdir(exist_ok=True)
        return messages

    def begun(self) -> bool:
        """Return whether the directory contains work that must not be mixed with another run's."""
        return any(self.checkpoints.glob("step_*"))

    def _acquire_lock(self) -> None:
        self._lock = open(self.folder / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"run.dir {self.folder} is in use by a running job: stop it or choose another") from None
        except OSError:  # some network file systems lack locks; the identity is still checked
            pass

    def _check_identity(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [key for key in {*before, *now} if before.get(key) != now.get(key)]
        if changed:
            key = min(changed, key=lambda key: (key.startswith(CONDITIONS), key))  # an option explains the others
            remedy = "repeat the run's own options to resume it"
            if key.startswith(CONDITIONS):
                remedy = "continue on the device and the torch that it began with, as their counts are not added"
            raise RunError(
                f"run.dir {self.folder} holds another run: {key} is {before.get(key)!r} there and {now.get(key)!r} here"
                + (f" ({len(changed)} differences)" if len(changed) > 1 else "")
                + f": choose another --run.dir, or {remedy}"
            )

    def _not_compared(self, missing: list[str]) -> str:
        names = ", ".join(key.removeprefix(CONDITIONS) for key in missing)
        return f"note: {self.folder} was begun by a version that did not record {names}: they could not be compared"

    def close(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()

    def record_environment(self, world_size: int, device: torch.device, precision: str) -> dict[str, Any]:
        """Append a line to environment.jsonl, and return it. precision: `run.precision`.

        `environment_changes` then has a sentence if the last start was under other conditions.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        facts = {"time": now, "world_size": world_size, **environment(device, precision)}
        with suppress(OSError, ValueError, IndexError):  # no line yet, or one that a kill cut short
            self.environment_changes = environment_changes(last_environment(self.folder), facts)
        with open(self.folder / "environment.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\n")
        return facts

    def set_status(self, status: Status) -> None:
        """Write status.json."""
        write_whole(self.folder / "status.json", json.dumps({"status": status}).encode())

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl under the keys of today; a last line that a kill truncated is left out."""
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
        """Drop the lines after `step`, from which the run continues."""
        lines = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_whole(self.metrics, "".join(lines).encode())


def last_environment(folder: Path) -> dict[str, Any]:
    """The environment that a run directory recorded at its last start."""
    lines = (folder / "environment.jsonl").read_text().splitlines()
    return current_fields(json.loads(lines[-1]), ENVIRONMENT)


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A sentence on what changed between two starts, lines of environment.jsonl, that decides bits; else nothing."""
    earlier, later = (_deciding_bits(facts) for facts in (before, now))
    changed = [
        f"{name} from {earlier[name]} to {value}"
        for name, value in later.items()
        if None not in (earlier[name], value) and earlier[name] != value
    ]
    if not changed:
        return []
    return [
        f"note: since the last start {', '.join(changed)} changed: the run continues, but not with the same bits as "
        "without the change"
    ]


def _deciding_bits(facts: dict[str, Any]) -> dict[str, Any]:
    """Name -> value of what decides how a run rounds, of a line of environment.jsonl; None is not known."""
    on = {True: "on", False: "off"}
    return {
        "the device": facts.get("device"),
        "torch": facts.get("packages", {}).get("torch"),
        "CUDA": facts.get("cuda"),
        "cuDNN": facts.get("cudnn"),
        "TF32 in matrix products": on[facts.get("tf32_matmul", False)],  # off in versions that did not record it
        "TF32 in convolutions": on[facts.get("tf32_cudnn", False)],
    }


def resume_command(command: str, world_size: int, device: str) -> str:
    """The command that, typed in the same folder, resumes a run that `command` started."""
    several = f"--multi_gpu --num_processes {world_size} " if world_size > 1 else "--num_processes 1 "
    return f"{'ACCELERATE_USE_CPU=true ' if device == 'cpu' else ''}accelerate launch {several}{command}"
