"""The training job: sets the ranks up, checks them, trains, measures, exports and reports."""

from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from fss.data.dataset import DataConfig
from fss.data.loader import BadSamples, load
from fss.data.view_dataset import ViewDataConfig
from fss.data.worker_count import worker_count
from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RunConfig
from fss.distributed.signals import interrupted_exit_code
from fss.distributed.startup import check_ranks
from fss.errors import ConfigError
from fss.jobs.job import config_dict, run_folder
from fss.methods import METHODS
from fss.methods.base import Method
from fss.nn.exports import read_header, save_export
from fss.numerics import describe
from fss.provenance import code_version, digest
from fss.tracking.identity import identity_of
from fss.tracking.log import Log, LogConfig
from fss.tracking.run_dir import RunDir, Status
from fss.tracking.tracker import Row, RunInfo
from fss.train.checkpoint import CheckpointConfig, Checkpoints, State
from fss.train.loop import Trainer
from fss.train.optim import OptimConfig, Schedule, build_optimizer
from fss.train.tasks import TASKS

MEASUREMENTS = 20  # of a run, if the configuration does not set their interval
PER_CLASS = "val/iou/"  # prefix of the keys of measurements of one class


class TrainingJob(Protocol):
    """The options of a job of fss.config that `fit` reads; its task reads more."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def method(self) -> Any: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def log(self) -> LogConfig: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...


def fit(job: TrainingJob, config_yaml: str) -> int:
    """Train the method of `job`; returns the exit code, 0 or `interrupted_exit_code()`.

    config_yaml: the job as YAML, to be kept in the run directory.
    Raises UserError or ShardError if an option, a file or the data do not fit; checkpoints and logs remain.
    """
    with (
        DistributedContext.from_config(job.run, accumulate=job.optim.accumulate) as context,
        closing(RunDir(run_folder(job.run))) as run,
    ):
        return _TrainingRun(job, config_yaml, context, run).execute()


class _TrainingRun:
    """One training run: its parts, built in order, and its course."""

    def __init__(self, job: TrainingJob, config_yaml: str, context: DistributedContext, run: RunDir) -> None:
        self.name = job.method.name
        self.job = job
        self.context = context
        self.run_dir = run
        torch.manual_seed(job.run.seed)  # the same weights on every rank
        self.method: Method = METHODS[self.name](job.method)
        self.task = TASKS[type(self.method.batch_spec)](job, self.method, context)
        self.shards = self.task.shards
        manifest = digest(self.shards.manifest.content())
        self.config = config_dict(job)
        identity = identity_of(self.config, manifest) | self.task.identity()
        # A resume may change between float32 and tf32, which differ in rounding on some devices only, and says so.
        identity["run.precision"] = "bf16" if job.run.precision == "bf16" else "float32"
        self.workers = worker_count(job.data, threads=torch.get_num_threads() if context.device.type == "cpu" else 1)
        self.rank_messages = check_ranks(
            context, run.folder, config=digest(identity), manifest=manifest, workers=self.workers
        )
        context.on_main(lambda: run.open(identity, config_yaml))
        context.on_abort(partial(run.set_status, "failed"), run.folder / "collectives")
        self.environment = context.on_main(
            lambda: run.record_environment(context.world_size, context.device, context.precision)
        )
        self.schedule = Schedule(config=job.optim, images=self.task.samples, batch=job.data.batch)
        self.checkpoints = Checkpoints(self.run_dir.checkpoints, job.checkpoint, context)
        fresh = not context.on_main(self.checkpoints.steps)
        self.init_messages = self.method.init_from(Path(job.run.init_from)) if job.run.init_from and fresh else []
        self.method.trainable.to(context.device)
        self.method.non_trainable.to(context.device)
        if job.run.compile:
            if type(self.method).compile is Method.compile:
                raise ConfigError(f"run.compile is true but {self.name} has nothing to compile: leave run.compile out")
            self.method.compile()
        torch.manual_seed(job.run.seed + 1 + context.rank)  # and random draws of its own
        self.optimizer = build_optimizer(self.method, job.optim)
        self.state = State(name=self.name, method=self.method, optimizer=self.optimizer)
        self.best = self.run_dir.folder / "best.safetensors"

    def execute(self) -> int:
        """Train to the end, or to the step at which a signal asked to stop; then the export and the report."""
        about = RunInfo(
            kind=self.task.kind,
            config=self.config,
            environment=self.environment,
            chance_levels=self.method.chance_levels(),
        )
        log = Log(
            self.run_dir,
            self.job.log,
            active=self.context.is_main,
            about=about,
            total=self.schedule.steps,
            unit=self.task.unit,
            slow_data=self._slow_data(),
        )
        ending: Status = "failed"
        try:
            done = self._train(log)
            ending = "finished" if done == self.schedule.steps else "interrupted"
            if ending == "finished":
                self._deliver(log)
            else:
                log.say(f"saved at step {done} as asked: run the same command again to continue")
        finally:
            with suppress(OSError):  # on a full disk, the first error says more
                if self.context.is_main:
                    self.run_dir.set_status(ending)
                self.context.on_abort(lambda: None)  # the status is written; trackers may take long
                self.context.report_progress("ending the log")
                log.close(failed=ending == "failed")
        self.context.barrier()  # the first rank to exit with a code has the launcher stop the others
        return 0 if ending == "finished" else interrupted_exit_code()

    def _train(self, log: Log) -> int:
        job, context = self.job, self.context
        trainer = Trainer(
            method=self.method,
            optimizer=self.optimizer,
            context=context,
            state=self.state,
            schedule=self.schedule,
            checkpoints=self.checkpoints,
            log=log,
            bad_samples=BadSamples(job.data.bad_fraction),
            nan_dump=self.run_dir.folder / "nonfinite",
            log_every=job.log.every,
            save_every=job.checkpoint.every,
            check_every=job.run.check_every,
        )
        start, resume_messages = self.checkpoints.resume(self.state)
        context.on_main(lambda: self._rewind(start))
        context.on_main(lambda: self.run_dir.set_status("running"))
        for message in (
            *self.rank_messages,
            *self._opening(start),
            *self.init_messages,
            *resume_messages,
            *(self.run_dir.environment_changes if start else ()),
        ):
            log.say(message)
        measured = context.on_main(lambda: {row["step"] for row in self.run_dir.rows() if "loss" not in row})
        if self._due(start) and start not in measured:  # a signal does not wait for it, but it must not be lost
            self._measure(log, start)
        if start >= self.schedule.steps:
            return start
        loader = load(
            self.method.batch_spec,
            self.task.data,
            replace(job.data, workers=self.workers),
            seed=job.run.seed,
            rank=context.rank,
            world_size=context.world_size,
            accumulate=job.optim.accumulate,
            start=start,
            pin=context.device.type == "cuda",
        )
        return trainer.run(iter(loader), start, lambda done: self._measure(log, done), self._due)

    def _due(self, done: int) -> bool:
        """True if a measurement is due after `done` steps."""
        every, steps = self.task.measure_every, self.schedule.steps
        if every is None:
            every = max(1, steps // MEASUREMENTS)
        return done in (0, steps) or (every > 0 and done % every == 0)

    def _rewind(self, start: int) -> None:
        """Drop what was logged after the checkpoint, or everything if there is none; measurements are repeated."""
        self.run_dir.rewind(start or -1)
        if not start:
            self.best.unlink(missing_ok=True)

    def _opening(self, start: int) -> list[str]:
        """Sentences on the run, before its first step."""
        s, job, context = self.schedule, self.job, self.context
        return [
            f"{self.name} on {len(self.shards)} images of {self.shards.manifest.name!r}: {s.steps} steps of "
            f"{job.data.batch} {self.task.unit} ({s.epoch(s.steps):.1f} epochs) on "
            f"{context.world_size} x {context.device.type}, {self.workers} data workers each, "
            f"{describe(context.precision, context.device)}; run directory {self.run_dir.folder}",
            *self.task.startup_messages(),
            f"resumed at step {start}" if start else "a new run",
            *self.method.startup_messages(len(self.shards), job.data.batch),
        ]

    def _slow_data(self) -> str:
        """What to say if the ranks wait for their data."""
        data = self.job.data
        text = f"{self.workers} data workers a rank are too few, or the disk is too slow: raise data.workers"
        if isinstance(data, ViewDataConfig) and data.backend != "device" and self.context.device.type != "cpu":
            text += ", or set data.backend to device in a new run"
        return text

    def _measure(self, log: Log, done: int) -> None:
        """Measure, log the values and pictures, and save the weights if they are the best so far."""
        row = self.task.measure()
        if not row:
            return
        best_metric = self.task.best_metric
        score = row.get(best_metric) if best_metric else None

        def save() -> None:
            # The best score is that in the file, so that both are consistent after a kill. Of equal scores, the later
            # one stays.
            if score is not None and (not self.best.exists() or score >= (read_header(self.best).score or 0)):
                self._export(self.best, done, score=score, scored_by=best_metric)
            if examples := self.task.examples():
                from fss.report.example_figures import draw_examples

                picture = self.run_dir.folder / "validation" / f"step_{done:08d}.png"
                log.table(done, "validation/examples", draw_examples(examples, picture))
                log.picture(done, "validation/picture", picture)
            if classes := {name: iou for name, iou in row.items() if name.startswith(PER_CLASS)}:
                table: list[Row] = [
                    {"class": name.removeprefix(PER_CLASS), "IoU": iou} for name, iou in classes.items()
                ]
                log.table(done, "validation/classes", table)

        self.context.on_main(save)
        log.row({"step": done, **row})  # last: a measurement without its row is made again

    def _export(self, path: Path, done: int, **fields: Any) -> None:
        """Write the weights after `done` steps, with a header on their training; `fields`: more fields of it."""
        tensors, header = self.method.export()
        fields |= {
            "data": self.shards.manifest.name,
            "images": len(self.shards),
            "steps": done,
            "epochs": self.schedule.epoch(done),
            "code": code_version(),
            "job": self.config,
            **self.task.export_metadata(done * self.schedule.batch, self.run_dir.rows()),
        }
        save_export(path, tensors, replace(header, **fields))

    def _deliver(self, log: Log) -> None:
        """Export the last weights and write the report, on rank 0."""
        last = self.run_dir.folder / f"{self.name}.safetensors"

        def deliver() -> Path | None:
            self._export(last, self.schedule.steps)
            if not self.job.run.report:
                return None
            from fss.report.training_page import report  # here: matplotlib takes a while to import, on every rank

            return report(self.run_dir, self.method, self.task, self.context.device)

        self.context.report_progress("writing the report")
        page = self.context.on_main(deliver)
        for path in sorted(self.run_dir.report.glob("*.png")):
            log.picture(self.schedule.steps, f"report/{path.stem}", path)
        log.export(self.schedule.steps, last)
        log.say(f"weights: {last}")
        if self.context.is_main and self.best.exists():
            header = read_header(self.best)
            score = f"{header.scored_by} {header.score:.4g} at step {header.steps}"
            log.export(self.schedule.steps, self.best)
            log.say(f"best weights: {self.best}, {score}")
        if page:
            log.say(f"report: {page}")
