"""A tracker for Weights & Biases, online or in files that are sent later. The only file that imports wandb."""

import netrc
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import wandb

from fss.errors import RunError
from fss.nn.exports import read_header
from fss.tracking.lineage import inputs, is_export, name_of
from fss.tracking.tracker import ArtifactMode, Row, RunInfo, Tracker, WandbMode

STAGING = "WANDB_DATA_DIR"  # names the folder in which wandb keeps pictures of tables until they are sent


class WandbRun(Tracker):
    """One start of a run. Online it continues the run of earlier starts; offline each start has a directory.

    mode: 'off' is not one of them. Falls back to 'offline' if wandb cannot be reached.
    """

    def __init__(
        self, folder: Path, about: RunInfo, *, mode: WandbMode, project: str, group: str | None, artifacts: ArtifactMode
    ) -> None:
        self._artifacts = artifacts
        self._staged_here = STAGING not in os.environ
        if self._staged_here:  # not the home directory: `wandb sync` finds everything in the run directory
            os.environ[STAGING] = str(folder.absolute() / "wandb" / "staging")
        used: dict[str, tuple[str, Path]] = {}
        if artifacts != "none":
            used = {key: (name_of(path), path) for key, path in inputs(about.config).items()}
        config = {
            **about.config,
            "job": about.kind,
            "environment": dict(about.environment),
            "inputs": {key: name for key, (name, _) in used.items()},
        }
        online = mode == "online" or (mode == "auto" and _has_key())
        try:
            self._run = _start("online" if online else "offline", folder, about, project, group, config)
        except wandb.Error as error:
            print(f"wandb is not reachable ({error}): logging offline, sync later", file=sys.stderr)
            self._run = _start("offline", folder, about, project, group, config)
        for name, path in used.values():
            # The body of run.use_artifact, which refuses offline runs although `wandb sync` links their inputs later.
            self._run._log_artifact(_artifact(name, path), is_user_created=True, use_after_commit=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def distribution(self, step: int, name: str, values: np.ndarray) -> None:
        self._run.log({name: wandb.Histogram(np_histogram=np.histogram(values, bins=64))}, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: wandb.Image(str(path))}, step=step)

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        cells = [
            [wandb.Image(cell, file_type="jpg") if isinstance(cell, np.ndarray) else cell for cell in row.values()]
            for row in rows
        ]
        self._run.log({name: wandb.Table(columns=list(rows[0]), data=cells)}, step=step)

    def export(self, path: Path) -> None:
        if self._artifacts != "none":
            artifact = _artifact(name_of(path), path, upload=self._artifacts == "upload")
            self._run.log_artifact(artifact, aliases=[path.stem])

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        if self._staged_here:
            del os.environ[STAGING]


@contextmanager
def reaching_wandb() -> Iterator[None]:
    """Frame code that needs an account and a network. Raises RunError if wandb refuses or cannot be reached."""
    try:
        yield
    except wandb.Error as error:
        raise RunError(f"wandb refuses ({error}): log in with `wandb login`, check the network and the names") from None


def _start(
    mode: Literal["online", "offline"],
    folder: Path,
    about: RunInfo,
    project: str,
    group: str | None,
    config: dict[str, Any],
) -> wandb.Run:
    return wandb.init(
        mode=mode,
        dir=str(folder),
        project=project,
        group=group or folder.absolute().parent.name,
        job_type=job_type(about),
        name=run_name(folder, about),
        tags=tags(about),
        id=_run_id(folder),
        resume="allow" if mode == "online" else None,
        config=config,
        settings=wandb.Settings(silent=True, console="off", init_timeout=60),
    )


def job_type(about: RunInfo) -> str:
    """The job and its fold: runs of one job type differ in their seeds."""
    fold = about.config.get("episodes", {}).get("fold")
    return about.kind if fold is None else f"{about.kind} fold {fold}"


def run_name(folder: Path, about: RunInfo) -> str:
    """The run directory's name, and the seeds."""
    seeds = about.config["eval"]["seeds"] if "eval" in about.config else [about.config["run"]["seed"]]
    return f"{folder.name}, " + (f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds")


def tags(about: RunInfo) -> list[str]:
    """Tags by which to filter runs: the method, the fold scheme, the shots."""
    episodes = about.config.get("episodes", {})
    shots = episodes.get("shots")
    candidates = [about.config["method"]["name"], episodes.get("scheme"), shots and f"{shots}-shot"]
    return [tag for tag in candidates if tag]


def _artifact(name: str, path: Path, *, upload: bool = False) -> wandb.Artifact:
    """The artifact of a file. Its name is equal in every run, so that equal content is one version of one artifact."""
    weights = is_export(path)
    artifact = wandb.Artifact(
        name, "weights" if weights else "evaluation", metadata=read_header(path).table() if weights else None
    )
    inside = f"{'weights' if weights else 'results'}{path.suffix}"
    if upload:
        artifact.add_file(str(path), name=inside, policy="immutable")  # no copy of it until it is sent
    else:
        artifact.add_reference(path.absolute().as_uri(), name=inside)
    return artifact


def _run_id(folder: Path) -> str:
    """The id of this run for wandb: equal at every start, and different for every run directory."""
    path = folder / "wandb.id"
    if not path.exists():
        path.write_text(secrets.token_hex(6))
    return path.read_text()


def _has_key() -> bool:
    """Return whether wandb can log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
