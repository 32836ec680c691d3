"""From a configuration to a score: sets the ranks up, checks them, measures or goes on measuring, tells."""

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
from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RuntimeConfig
from fss.distributed.signals import StopRequest, interrupted
from fss.distributed.startup import check_ranks
from fss.distributed.wrapping import fingerprint
from fss.evaluate.cost import episode_flops
from fss.evaluate.loading import load_for_evaluation
from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.plan import EvalConfig, EvaluationPlan, FoldConfig, plan_evaluation, require_valid_size
from fss.evaluate.record import EpisodeRecord, EpisodeResult
from fss.evaluate.summary import scalars, summarize, tables
from fss.provenance import code_version, digest
from fss.report.evaluation_page import report
from fss.tracking.identity import identity_of
from fss.tracking.log import Log, LogConfig
from fss.tracking.meter import peak_memory_mb
from fss.tracking.run_dir import RunDir
from fss.tracking.tracker import RunInfo
from shards.format import write_whole

FREE = ("data.batch", "eval.cache_gib", "eval.episode_list", "weights")  # beside run.OPERATIONAL: change no score
SAY_EVERY = 30  # seconds between lines on how far an evaluation is


class EvaluationJob(Protocol):
    """What `evaluate` needs of a job of fss.config."""

    run: RuntimeConfig
    data: DataConfig
    episodes: FoldConfig
    eval: EvalConfig
    log: LogConfig
    method: Any
    weights: str | None


def evaluate(job: EvaluationJob, config_yaml: str) -> int:
    """Evaluate a method as `job` says; returns the exit code, 0 or `interrupted()`.

    Raises UserError or ShardError for what a user can mend; finished episodes stay recorded.
    """
    # One thread: features move in the fifth digit with the number of threads.
    with (
        DistributedContext.from_config(job.run, threads=1) as context,
        closing(EvaluationDir(Path(job.run.dir))) as run,
    ):
        return _Evaluation(job, config_yaml, context, run).execute()


class EvaluationDir(RunDir):
    """A run directory whose run has begun once an episode is recorded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.drawn = folder / "episodes.tsv"
        self.episodes = folder / "episodes"
        self.results = folder / "results.json"

    def begun(self) -> bool:
        return any(self.episodes.glob("rank_*.jsonl"))


class _Evaluation:
    """The parts of one evaluation, put together."""

    def __init__(self, job: EvaluationJob, config_yaml: str, context: DistributedContext, run: EvaluationDir) -> None:
        self.job = job
        self.context = context
        self.run_dir = run
        self.shards = open_shard_set(job.data, context.on_main)
        self.manifest = self.shards.manifest
        self.method, self.header, self.notes = load_for_evaluation(job)
        require_valid_size(self.method.config, job.eval.size)
        self.plan: EvaluationPlan = plan_evaluation(
            job.episodes, job.eval, self.header, self.manifest, self.method.config.size
        )
        if self.plan.split == "novel":
            check_novel_unseen(self.method.seen_classes(), self.plan.fold, self.manifest.classes)
        identity = self._identity()
        manifest = identity["data.manifest"]
        self.ranks = check_ranks(context, run.folder, config=digest(identity), manifest=manifest)
        context.on_main(lambda: run.open(identity, config_yaml))
        context.on_abort(partial(run.set_status, "failed"))
        self.environment = context.on_main(lambda: run.record_environment(context.world_size, context.device))
        context.on_main(lambda: write_list(run.drawn, self.plan.episodes, self.manifest))
        for part in (self.method.trainable, self.method.non_trainable):
            part.to(context.device)
        self.predictor = predictor_for(self.method, self.plan.scoring, context)

    def _identity(self) -> dict:
        """Everything that decides the counts of an episode, and which episodes there are."""
        config = asdict(self.job)
        if self.job.weights:  # they hold the frozen networks too: the files that training took these from may be gone
            config["method"] = {key: value for key, value in config["method"].items() if not key.endswith("_weights")}
        named = identity_of(config, manifest=digest(self.manifest.content()))
        parts = {"trained": self.method.trainable, "replica": self.method.non_trainable}
        tensors = {
            f"{part}.{name}": fingerprint(tensor)
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        return {key: value for key, value in named.items() if key not in FREE} | {
            "code": code_version(),  # counts of two versions must not be added
            "weights": digest(tensors),
            "episodes": digest([asdict(episode) for episode in self.plan.episodes]),
            "run.threads": torch.get_num_threads(),
            "run.device": self.context.device.type,
        }

    def execute(self) -> int:
        """Measure what is not yet recorded; when nothing is missing, tell."""
        wanted = len(self.plan.episodes)
        about = RunInfo(kind="evaluate", config=self._decided(), environment=self.environment)
        log = Log(self.run_dir, self.job.log, active=self.context.is_main, about=about, total=wanted, unit="episodes")
        ending = "failed"
        try:
            self._set_status("running")
            for text in (*self.ranks, *self._opening()):
                log.say(text)
            with StopRequest().listening() as stop:
                results = self._measure(log, stop)
            ending = "finished" if len(results) == wanted else "interrupted"
            if ending == "finished":
                self._deliver(log, results)
            else:
                log.say(f"{len(results)} of {wanted} episodes are recorded: type the same command to go on from there")
        finally:
            with suppress(OSError):  # of a disk that filled the first error tells more
                self._set_status(ending)
                self.context.on_abort(lambda: None)  # what became of the run is decided; viewers may take long
                self.context.report_progress("ending the log")
                log.close(failed=ending == "failed")
        self.context.barrier()  # the first rank to exit with a code has the launcher stop the others
        return 0 if ending == "finished" else interrupted()

    def _decided(self) -> dict:
        """The job, with what weights and protocol have brought."""
        config, fold = asdict(self.job), self.plan.fold
        config["episodes"] |= {"scheme": fold.scheme, "fold": fold.fold, "shots": self.plan.shots}
        config["eval"]["seeds"] = sorted({episode.seed for episode in self.plan.episodes})
        return config

    def _set_status(self, status) -> None:
        if self.context.is_main:
            self.run_dir.set_status(status)

    def _opening(self) -> list[str]:
        """What is evaluated and how, before the first episode."""
        said = self.plan.statement(self.manifest, self.header)
        width = max(map(len, said))
        return [
            f"{self.job.method.name} on {self.context.world_size} x {self.context.device.type}, {self.job.run.precision}; "
            f"run directory {self.run_dir.folder}",
            *(f"{label:<{width}}  {words}" for label, words in said.items()),
            *(f"note: {text}" for text in (*self.notes, *self.method.caveats(self._episodes_seen()))),
        ]

    def _episodes_seen(self) -> int:
        return self.header.episodes_seen or 0

    def _measure(self, log: Log, stop: StopRequest) -> list[EpisodeResult]:
        wanted, context, said = len(self.plan.episodes), self.context, time.monotonic()

        def on_result(result: EpisodeResult, left: int) -> None:
            nonlocal said
            done = max(0, wanted - left * context.world_size)  # the ranks' shares are alike
            log.at(done)
            if left and time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                log.say(f"about {done} of {wanted} episodes, {result.seconds:.2f} s each")
                log.scalars(done, self._speed(result.seconds))

        return measure(
            self.predictor,
            self.shards,
            self.plan.episodes,
            self.plan.scoring,
            context,
            EpisodeRecord(self.run_dir.episodes, context.rank),
            cache=self.job.eval.cache_gib,
            readers=self.job.data.workers,
            stop=stop,
            on_result=on_result,
        )

    def _speed(self, seconds: float) -> dict[str, float]:
        return {"speed/s_per_episode": seconds, "speed/peak_memory_mb": peak_memory_mb(self.context.device)}

    def _flops(self) -> int:
        if self.run_dir.results.exists():  # finished before, and asked to tell it again
            return json.loads(self.run_dir.results.read_text())["flops"]
        return episode_flops(self.predictor, self.shards, self.plan.episodes[0], self.plan.scoring.labels)

    def _deliver(self, log: Log, results: list[EpisodeResult]) -> None:
        """Scores into results.json, the log and the console, and the page to look at; rank 0's work."""
        found = summarize(results, self.plan.classes, self.manifest.classes)
        statement = self.plan.statement(self.manifest, self.header)

        def deliver() -> Path:
            parts = {"trained": self.method.trainable, "frozen": self.method.non_trainable}
            facts = {
                "protocol": statement,
                "scoring": asdict(self.plan.scoring),
                "ranks": self.context.world_size,
                "parameters": {part: sum(p.numel() for p in net.parameters()) for part, net in parts.items()},
                "flops": self._flops(),
                **found,
            }
            write_whole(self.run_dir.results, json.dumps(facts, indent=1).encode())
            self.run_dir.rewind(-1)  # a finished evaluation that is asked for again tells the same once more
            return report(self.run_dir, self.predictor, self.shards, results, self.plan, self.header)

        self.context.report_progress("writing the report")
        page = self.context.on_main(deliver)
        log.row({"step": len(results), **scalars(found)})
        log.scalars(len(results), self._speed(found["seconds_per_episode"]))
        log.table(
            len(results),
            "classes",
            [
                {"class": name, "IoU": one["iou"]["mean"], "deviation": one["iou"]["std"], "episodes": one["episodes"]}
                for name, one in found["classes"].items()
            ],
        )
        for table in tables(found, f"{self.job.method.name}, {statement['fold']}, {self.plan.shots} shot(s), percent"):
            log.say(table)
        if found["never_met"]:
            log.say(f"note: no episode asked for {', '.join(found['never_met'])}: such a class is in the mIoU with 0")
        for flag, count in found["flags"].items():
            log.say(f"note: {count:,} of {len(results):,} episodes: {flag}")
        log.say(
            f"{found['encoder_passes']} encoder passes for {found['images']} images, "
            f"{found['seconds_per_episode']:.3f} s an episode on each rank; results: {self.run_dir.results}"
        )
        for path in sorted(self.run_dir.report.glob("*.png")):
            log.picture(len(results), f"report/{path.stem}", path)
        log.export(len(results), self.run_dir.results)
        log.say(f"report: {page}")
