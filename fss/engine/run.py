"""The run directory: what ran, where, with which configuration, and what became of it.

config.yaml          the resolved configuration; with another --run.dir, `--config config.yaml` repeats the run
run.json             the identity of the run: what must be equal for a resume
environment.jsonl    one line a start: versions, git commit, ranks, machine, command
metrics.jsonl        one line a logged step; a resumed run drops the lines past its checkpoint
status.json          running, interrupted, finished or failed
checkpoints/         of a training, see fss.engine.checkpoint
episodes/            of an evaluation, see fss.engine.evaluation.record
episodes.tsv         which they are, as a list that `--eval.episode_list` reads
results.json         its scores, and the protocol that made them
NAME.safetensors     the last weights of method NAME, for other jobs; best.safetensors: those that validated best
validation/          pictures of the same few episodes at every validation
report/              the page to look at
wandb/, tensorboard/ what viewers read, see fss.engine.log; wandb.id and *.sent: under which name, and what they got
nonfinite/           evidence of a NaN or infinite loss: batch, keys, report
"""

import fcntl
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Literal

import torch
from safetensors import SafetensorError, safe_open

from fss.errors import RunError, WeightsError, at_least
from shards.format import write_whole

INTERRUPTED = 75  # exit code: saved after SIGTERM or SIGUSR1, type the same command to go on (EX_TEMPFAIL)

# What may change between a run and its resume without making it another run.
OPERATIONAL = (
    "run.dir",
    "run.world",
    "run.device",
    "run.timeout_minutes",
    "run.check_every",
    "run.threads",
    "data.shards",
    "data.bad_fraction",
    "data.workers",
    "data.prefetch",
    "data.cache",
    "log",
    "checkpoint",
    "probe",
    "validate.shards",
)
PACKAGES = ("torch", "torchvision", "accelerate", "webdataset", "numpy", "opencv-python-headless", "scikit-image")


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """Where a run lives and on what it runs."""

    dir: str | None = None
    """Run directory; null: runs/ and a name made from the job, its recipe or weights, and the fold. The same
    command goes on where it stopped."""
    world: int | None = None
    """Ranks promised; the job refuses to start on another number. null: as many as the launcher started."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a device."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: autocast. Parameters, momentum encoder and queues stay float32."""
    threads: int | None = None
    """CPU threads of torch in each rank; null leaves what the launcher set."""
    timeout_minutes: float = 30
    """How long a rank, or one that it waits for, may come no further before it ends the job; 0 for ever."""

    def __post_init__(self) -> None:
        at_least("run", self, world=1, threads=1, timeout_minutes=0)


@dataclass(frozen=True, kw_only=True)
class RunConfig(PlaceConfig):
    """Where a training run lives, on what it runs, and from where it starts."""

    seed: int = 0
    """Seed of weights, data order and augmentation."""
    compile: bool = False
    """Compile the encoders with torch.compile."""
    check_every: int = 500
    """Steps between checks that weights and queues are the same on all ranks; 0 for never."""
    start_from: str | None = None
    """Weights to begin a new run from: an export of an earlier run of the same method, or, for the prior extractor, an
    official MoCo checkpoint (not a resume)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("run", self, seed=0, check_every=0)


def interrupted() -> int:
    """The exit code of a rank that saved and left as asked.

    Under a launcher that starts ranks again when they fail (`--max_restarts`) it is 0: any other would bring them back.
    """
    return 0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) else INTERRUPTED


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
            self._check_identity(json.loads(record.read_text()), identity)
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

    def record_environment(self, world: int, device: torch.device) -> dict:
        """Append a line to environment.jsonl, and return it."""
        facts = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "world": world, **environment(device)}
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
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def rewind(self, step: int) -> None:
        """Drop what was logged past `step`: the run goes on from there."""
        lines = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_whole(self.metrics, "".join(lines).encode())


def identity_of(config: dict, manifest: str) -> dict:
    """The part of a nested config that decides the result, flat, with the digest of the shard manifest.

    Files of weights (`weights`, and options of the method that end in it) count by what they hold, not by their place.
    Raises WeightsError where one cannot be read.
    """
    flat = {"data.manifest": manifest}

    def walk(prefix: str, node: dict) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in OPERATIONAL:
                continue
            if isinstance(value, dict):
                walk(f"{key}.", value)
            elif value is not None and key.split(".")[0] in ("method", "weights") and key.endswith("weights"):
                flat[key] = f"sha256 {_file_digest(key, value)}"
            else:
                flat[key] = value

    walk("", config)
    return flat


def _file_digest(key: str, path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise WeightsError(f"{key} {path} cannot be read ({error.strerror}): check the path") from None


def read_header(path: Path) -> dict[str, str]:
    """What exported weights say of themselves, without reading a tensor. Raises WeightsError where there are none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}): give the export of a run") from None


def digest(value: object) -> str:
    """A short stable digest of something JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_version() -> str:
    """The git commit of the code that runs, '+' for uncommitted changes; the package version outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return version("fss")


def environment(device: torch.device) -> dict:
    """What a result may depend on beside the configuration."""
    return {
        "command": shlex.join(sys.argv),
        "code": code_version(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32,  # of convolutions, where float32 is asked
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
