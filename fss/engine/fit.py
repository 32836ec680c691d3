"""From a configuration to a finished run: sets the ranks up, checks them, trains, probes, exports, reports."""

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from fss.data.loader import BadSamples, load
from fss.engine.checkpoint import Checkpoints, State
from fss.engine.dist import World
from fss.engine.log import Log
from fss.engine.loop import Trainer
from fss.engine.optim import Schedule, build_optimizer
from fss.engine.probe import probe, probe_crops
from fss.engine.report import report
from fss.engine.run import INTERRUPTED, RunDir, code_version, digest, identity_of
from fss.methods import METHODS
from fss.methods.base import Method
from fss.nn.weights import save_export
from shards.read import ShardSet
from shards.synthetic import embed

EMBEDDED_IMAGES = 800


def fit(name: str, job, config_yaml: str) -> int:
    """Train method `name` as `job` (a job of fss.config) says; returns the exit code, 0 or INTERRUPTED.

    Raises UserError or ShardError for what a user can mend; whatever was saved before stays.
    """
    if job.run.threads:
        torch.set_num_threads(job.run.threads)
    world = World(
        promised=job.run.world, device=job.run.device, precision=job.run.precision,
        accumulate=job.optim.accumulate, timeout_minutes=job.run.timeout_minutes,
    )    # fmt: skip
    try:
        return _Fit(name, job, config_yaml, world).go()
    finally:
        world.close()


class _Fit:
    """The parts of one training run, put together."""

    def __init__(self, name: str, job, config_yaml: str, world: World) -> None:
        self.name = name
        self.job = job
        self.world = world
        self.shards = ShardSet(self._data_folder(), cache=job.data.cache)
        self.crops = probe_crops(job.probe, self.shards)
        identity = identity_of(asdict(job), manifest=digest(asdict(self.shards.manifest)))
        world.check_same("the configuration with the shard manifest", digest(identity))
        world.check_same("the code", code_version())

        self.run = RunDir(Path(job.run.dir))
        world.on_main(lambda: self.run.open(identity, config_yaml))
        world.on_main(lambda: self.run.record_environment(world.size))
        self.schedule = Schedule(config=job.optim, images=len(self.shards), batch=job.data.batch)

        torch.manual_seed(job.run.seed)    # the same weights on every rank
        self.method: Method = METHODS[name](job.method)
        self.checkpoints = Checkpoints(self.run.checkpoints, job.checkpoint, world)
        fresh = not world.on_main(self.checkpoints.steps)
        self.notes = self.method.start_from(Path(job.run.start_from)) if job.run.start_from and fresh else []
        self.method.trained.to(world.device)
        self.method.replica.to(world.device)
        if job.run.compile:
            self.method.compile()
        torch.manual_seed(job.run.seed + 1 + world.rank)    # but draws of its own
        self.optimizer = build_optimizer(self.method, job.optim)
        self.state = State(name=name, method=self.method, optimizer=self.optimizer)

    def _data_folder(self) -> str:
        """The shards to train on; the embedded set, packed at first use, where none are named."""
        if self.job.data.shards:
            return self.job.data.shards
        folder = Path(os.environ.get("FSS_DATA", "data")) / "synthetic"
        self.world.on_main(lambda: embed(folder, images=EMBEDDED_IMAGES, processes=min(os.cpu_count() or 1, 8)))
        return str(folder)

    def go(self) -> int:
        """Train to the end, or to the step at which a signal asked to stop; then the export and the report."""
        log = Log(
            self.run, self.job.log, active=self.world.is_main, snapshot=asdict(self.job), total=self.schedule.steps
        )
        ending = "failed"
        try:
            done = self._train(log)
            ending = "finished" if done == self.schedule.steps else "interrupted"
            if ending == "finished":
                self._deliver(log)
            else:
                log.say(f"saved at step {done} as asked: type the same command to go on from there")
        finally:
            with contextlib.suppress(OSError):    # of a disk that filled the first error tells more
                if self.world.is_main:
                    self.run.set_status(ending)
                log.close(failed=ending == "failed")
        self.world.wait()    # the first rank to exit with a code has the launcher stop the others
        return 0 if ending == "finished" else INTERRUPTED

    def _train(self, log: Log) -> int:
        job, world = self.job, self.world
        trainer = Trainer(
            method=self.method, optimizer=self.optimizer, world=world, state=self.state, schedule=self.schedule,
            checkpoints=self.checkpoints, log=log, bad_samples=BadSamples(job.data.bad_fraction),
            evidence=self.run.folder / "nonfinite", log_every=job.log.every, save_every=job.checkpoint.every,
            check_every=job.run.check_every,
        )    # fmt: skip
        start, notes = self.checkpoints.resume(self.state)
        world.on_main(lambda: self.run.rewind(start or -1))    # without a checkpoint step 0's probe runs again too
        world.on_main(lambda: self.run.set_status("running"))
        for text in (*self._opening(start), *self.notes, *notes):
            log.say(text)
        if start >= self.schedule.steps:
            return start
        if start == 0:
            self._probe(log, 0)
        loader = load(
            self.method.consumes, self.shards, job.data, seed=job.run.seed, rank=world.rank, world=world.size,
            accumulate=job.optim.accumulate, start=start,
        )    # fmt: skip
        return trainer.run(iter(loader), start, lambda done: self._after(log, done))

    def _opening(self, start: int) -> list[str]:
        s, job, world = self.schedule, self.job, self.world
        return [
            f"{self.name} on {len(self.shards)} images of {self.shards.manifest.name!r}: {s.steps} steps of "
            f"{job.data.batch} images ({s.epoch(s.steps):.1f} epochs) on {world.size} x {world.device.type}, "
            f"{job.run.precision}; run directory {self.run.folder}",
            f"resumed at step {start}" if start else "a new run",
            *self.method.briefing(len(self.shards), job.data.batch),
        ]

    def _after(self, log: Log, done: int) -> None:
        every = self.job.probe.every
        if done == self.schedule.steps or (every and done % every == 0):
            self._probe(log, done)

    def _probe(self, log: Log, done: int) -> None:
        if self.crops is not None:
            job = self.job.probe
            log.row({"step": done, **probe(self.method, self.crops, self.world.peers, self.world.device, k=job.k)})

    def _deliver(self, log: Log) -> None:
        """The weights that other jobs start from, and the page to look at; rank 0's work."""

        def deliver() -> Path:
            tensors, header = self.method.export()
            rows = self.run.rows()
            known = {
                "data": self.shards.manifest.name,
                "images": len(self.shards),
                "images_seen": self.schedule.steps * self.schedule.batch,
                "epochs": self.schedule.epoch(self.schedule.steps),
                "code": code_version(),
                "knn": next((row["knn/top1"] for row in reversed(rows) if "knn/top1" in row), None),
                "job": asdict(self.job),
            }
            header |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}
            save_export(self.run.folder / f"{self.name}.safetensors", tensors, header)
            return report(self.run, self.method, self.shards, self.crops)

        page = self.world.on_main(deliver)
        for path in sorted(self.run.report.glob("*.png")):
            log.picture(f"report/{path.stem}", path)
        log.say(f"weights: {self.run.folder / self.name}.safetensors")
        log.say(f"report: {page}")
