"""The evaluation job: sets the ranks up, checks them, measures what is not recorded yet, and reports."""

import json
import time
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from fss.data.class_leakage import check_novel_unseen
from fss.data.dataset import DataConfig
from fss.data.episode_lists import write_list
from fss.data.shard_sets import open_shard_set
from fss.data.worker_count import worker_count
from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RuntimeConfig
from fss.distributed.signals import StopRequest, interrupted_exit_code
from fss.distributed.startup import check_ranks
from fss.distributed.tensor_digest import fingerprint
from fss.evaluate.cost import episode_flops
from fss.evaluate.loading import load_for_evaluation
from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.plan import EvalConfig, EvaluationPlan, FoldConfig, plan_evaluation, require_valid_size
from fss.evaluate.record import EpisodeRecord, EpisodeResult
from fss.evaluate.summary import scalars, summarize, tables
from fss.jobs.job import config_dict, run_folder
from fss.numerics import describe
from fss.provenance import code_version, count_conditions, digest
from fss.tracking.identity import CONDITIONS, identity_of
from fss.tracking.log import Log, LogConfig
from fss.tracking.meter import peak_memory_mb
from fss.tracking.run_dir import RunDir, Status
from fss.tracking.tracker import RunInfo
from shards.format import write_whole

NEUTRAL_OPTIONS = ("data.batch", "eval.cache_gib", "eval.episode_list", "weights")
"""Options that change no score, besides those that `identity_of` leaves out."""
PROGRESS_SECONDS = 30  # between lines on the progress of an evaluation


class EvaluationJob(Protocol):
    """The options of a job of fss.config that `evaluate` reads."""

    @property
    def run(self) -> RuntimeConfig: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def episodes(self) -> FoldConfig: ...
    @property
    def eval(self) -> EvalConfig: ...
    @property
    def log(self) -> LogConfig: ...
    @property
    def method(self) -> Any: ...
    @property
    def weights(self) -> str | None: ...


def evaluate(job: EvaluationJob, config_yaml: str) -> int:
    """Evaluate the method of `job`; returns the exit code, 0 or `interrupted_exit_code()`.

    config_yaml: the job as YAML, to be kept in the run directory.
    Raises UserError or ShardError if an option, a file or the data do not fit; finished episodes stay recorded.
    """
    # One thread, as the number of threads changes features in the fifth digit.
    with (
        DistributedContext.from_config(job.run, threads=1) as context,
        closing(EvaluationDir(run_folder(job.run))) as run,
    ):
        return _EvaluationRun(job, config_yaml, context, run).execute()


class EvaluationDir(RunDir):
    """The run directory of an evaluation, which has begun if an episode is recorded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.episode_list = folder / "episodes.tsv"
        self.episodes = folder / "episodes"
        self.results = folder / "results.json"

    def begun(self) -> bool:
        return any(self.episodes.glob("rank_*.jsonl"))


class _EvaluationRun:
    """One evaluation: its parts, built in order, and its course."""

    def __init__(self, job: EvaluationJob, config_yaml: str, context: DistributedContext, run: EvaluationDir) -> None:
        self.job = job
        self.context = context
        self.run_dir = run
        self.shards = open_shard_set(job.data, context.on_main)
        self.manifest = self.shards.manifest
        self.method, self.header, self.differences = load_for_evaluation(job)
        require_valid_size(self.method.config, job.eval.size)
        self.plan: EvaluationPlan = plan_evaluation(
            job.episodes, job.eval, self.header, self.manifest, self.method.config.size
        )
        if self.plan.split == "novel":
            check_novel_unseen(self.method.seen_classes(), self.plan.fold, self.manifest.classes)
        self.conditions = count_conditions(context.device)
        identity = self._identity()
        manifest = identity["data.manifest"]
        for name, value in self.conditions.items():
            context.check_same(name, str(value), "start all ranks on the same kind of device, with the same torch")
        self.readers = worker_count(job.data, threads=1)
        self.rank_messages = check_ranks(
            context, run.folder, config=digest(identity), manifest=manifest, workers=self.readers
        )
        self.rank_messages += context.on_main(lambda: run.open(identity, config_yaml))
        context.on_abort(partial(run.set_status, "failed"), run.folder / "collectives")
        self.environment = context.on_main(
            lambda: run.record_environment(context.world_size, context.device, context.precision)
        )
        context.on_main(lambda: write_list(run.episode_list, self.plan.episodes, self.manifest))
        for part in (self.method.trainable, self.method.non_trainable):
            part.to(context.device)
        self.predictor = predictor_for(self.method, self.plan.scoring, context)

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the counts of the episodes, option -> value."""
        config = config_dict(self.job)
        if self.job.weights:  # they contain the frozen networks, whose own files may be gone
            config["method"] = {key: value for key, value in config["method"].items() if not key.endswith("_weights")}
        options = identity_of(config, manifest=digest(self.manifest.content()))
        parts = {"trained": self.method.trainable, "replica": self.method.non_trainable}
        tensors = {
            f"{part}.{name}": fingerprint(tensor)
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        return {key: value for key, value in options.items() if key not in NEUTRAL_OPTIONS} | {
            "code": code_version(),  # counts of two versions must not be mixed
            "weights": digest(tensors),
            "episodes": digest([asdict(episode) for episode in self.plan.episodes]),
            "run.threads": torch.get_num_threads(),
            "run.device": self.context.device.type,
            **{f"{CONDITIONS}{name}": value for name, value in self.conditions.items()},
        }

    def execute(self) -> int:
        """Measure what is not recorded yet, then report if all episodes are."""
        total = len(self.plan.episodes)
        about = RunInfo(kind="evaluate", config=self._resolved_config(), environment=self.environment)
        log = Log(self.run_dir, self.job.log, active=self.context.is_main, about=about, total=total, unit="episodes")
        ending: Status = "failed"
        try:
            self._set_status("running")
            for message in (*self.rank_messages, *self._opening()):
                log.say(message)
            with StopRequest().listening() as stop:
                results = self._measure(log, stop)
            ending = "finished" if len(results) == total else "interrupted"
            if ending == "finished":
                self._deliver(log, results)
            else:
                log.say(f"{len(results)} of {total} episodes are recorded: run the same command again to continue")
        finally:
            with suppress(OSError):  # on a full disk, the first error says more
                self._set_status(ending)
                self.context.on_abort(lambda: None)  # the status is written; trackers may take long
                self.context.report_progress("ending the log")
                log.close(failed=ending == "failed")
        self.context.barrier()  # the first rank to exit with a code has the launcher stop the others
        return 0 if ending == "finished" else interrupted_exit_code()

    def _resolved_config(self) -> dict[str, Any]:
        """The options of the job with what the weights and the protocol decide."""
        config, fold = config_dict(self.job), self.plan.fold
        config["episodes"] |= {"scheme": fold.scheme, "fold": fold.fold, "shots": self.plan.shots}
        config["eval"]["seeds"] = sorted({episode.seed for episode in self.plan.episodes})
        return config

    def _set_status(self, status: Status) -> None:
        if self.context.is_main:
            self.run_dir.set_status(status)

    def _opening(self) -> list[str]:
        """Lines on the evaluation, before its first episode."""
        statement = self.plan.statement(self.manifest, self.header)
        width = max(map(len, statement))
        return [
            f"{self.job.method.name} on {self.context.world_size} x {self.context.device.type}, "
            f"{describe(self.context.precision, self.context.device)}; run directory {self.run_dir.folder}",
            *(f"{label:<{width}}  {words}" for label, words in statement.items()),
            *(f"note: {text}" for text in (*self.differences, *self.method.caveats(self.header.episodes_seen or 0))),
        ]

    def _measure(self, log: Log, stop: StopRequest) -> list[EpisodeResult]:
        total, context, reported = len(self.plan.episodes), self.context, time.monotonic()

        def on_result(result: EpisodeResult, left: int) -> None:
            nonlocal reported
            done = max(0, total - left * context.world_size)  # all ranks have about equally many
            log.at(done)
            if left and time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                log.say(f"about {done} of {total} episodes, {result.seconds:.2f} s each")
                log.scalars(done, self._speed(result.seconds))

        return measure(
            self.predictor,
            self.shards,
            self.plan.episodes,
            self.plan.scoring,
            context,
            EpisodeRecord(self.run_dir.episodes, context.rank),
            cache=self.job.eval.cache_gib,
            readers=self.readers,
            stop=stop,
            on_result=on_result,
        )

    def _speed(self, seconds: float) -> dict[str, float]:
        return {"speed/s_per_episode": seconds, "speed/peak_memory_mb": peak_memory_mb(self.context.device)}

    def _flops(self) -> int:
        if self.run_dir.results.exists():  # the same command again, after the evaluation finished
            return int(json.loads(self.run_dir.results.read_text())["flops"])
        return episode_flops(self.predictor, self.shards, self.plan.episodes[0], self.plan.scoring.labels)

    def _deliver(self, log: Log, results: list[EpisodeResult]) -> None:
        """Write results.json, the report, the log and the tables on the console, on rank 0."""
        summary = summarize(results, self.plan.classes, self.manifest.classes)
        statement = self.plan.statement(self.manifest, self.header)

        def deliver() -> Path | None:
            parts = {"trained": self.method.trainable, "frozen": self.method.non_trainable}
            facts = {
                "protocol": statement,
                "scoring": asdict(self.plan.scoring),
                "ranks": self.context.world_size,
                "parameters": {part: sum(p.numel() for p in net.parameters()) for part, net in parts.items()},
                "flops": self._flops(),
                **summary,
            }
            write_whole(self.run_dir.results, json.dumps(facts, indent=1).encode())
            self.run_dir.rewind(-1)  # the log of the same command again has no second line
            if not self.job.run.report:
                return None
            from fss.report.evaluation_page import report  # here: matplotlib takes a while to import, on every rank

            return report(self.run_dir, self.predictor, self.shards, results, self.plan, self.header)

        self.context.report_progress("writing the report")
        page = self.context.on_main(deliver)
        log.row({"step": len(results), **scalars(summary)})
        log.scalars(len(results), self._speed(summary["seconds_per_episode"]))
        log.table(
            len(results),
            "classes",
            [
                {"class": name, "IoU": row["iou"]["mean"], "deviation": row["iou"]["std"], "episodes": row["episodes"]}
                for name, row in summary["classes"].items()
            ],
        )
        for table in tables(
            summary, f"{self.job.method.name}, {statement['fold']}, {self.plan.shots} shot(s), percent"
        ):
            log.say(table)
        if summary["never_met"]:
            log.say(f"note: no episode is of {', '.join(summary['never_met'])}: such a class is in the mIoU with 0")
        for flag, count in summary["flags"].items():
            log.say(f"note: {count:,} of {len(results):,} episodes: {flag}")
        log.say(
            f"{summary['encoder_passes']} encoder passes for {summary['images']} images, "
            f"{summary['seconds_per_episode']:.3f} s an episode on each rank; results: {self.run_dir.results}"
        )
        for path in sorted(self.run_dir.report.glob("*.png")):
            log.picture(len(results), f"report/{path.stem}", path)
        log.export(len(results), self.run_dir.results)
        if page:
            log.say(f"report: {page}")
