"""From a configuration to a score: sets the ranks up, checks them, measures or goes on measuring, tells."""

import json
import time
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from fss.data.feed import DataConfig
from fss.data.lists import write_list
from fss.engine.dist import World, fingerprint
from fss.engine.evaluation.cost import episode_flops
from fss.engine.evaluation.measure import measure
from fss.engine.evaluation.outcome import outcome, row, tables
from fss.engine.evaluation.plan import EvalConfig, FoldConfig, Plan, plan, require_taken
from fss.engine.evaluation.record import Record, Result
from fss.engine.learnt import check_test
from fss.engine.log import Log, LogConfig
from fss.engine.loop import StopRequest
from fss.engine.meter import peak_memory_mb
from fss.engine.reports.evaluation import report
from fss.engine.run import PlaceConfig, RunDir, code_version, digest, identity_of, interrupted
from fss.engine.startup import check_ranks
from fss.engine.tasks.task import open_shards
from fss.engine.viewers.viewer import About
from fss.errors import ConfigError
from fss.methods import METHODS, load_method
from fss.methods.base import Method
from fss.nn.weights import load_export
from shards.format import write_whole

FREE = ("data.batch", "eval.cache_gib", "eval.episode_list", "weights")  # beside run.OPERATIONAL: change no score
SAY_EVERY = 30  # seconds between lines on how far an evaluation is


class EvaluationJob(Protocol):
    """What `evaluate` needs of a job of fss.config."""

    run: PlaceConfig
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
    with World.at(job.run, threads=1) as world, closing(EvalDir(Path(job.run.dir))) as run:
        return _Evaluation(job, config_yaml, world, run).go()


class EvalDir(RunDir):
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

    def __init__(self, job: EvaluationJob, config_yaml: str, world: World, run: EvalDir) -> None:
        self.job = job
        self.world = world
        self.run = run
        self.shards = open_shards(job.data, world)
        self.manifest = self.shards.manifest
        self.method, self.header, self.notes = method_of(job)
        require_taken(self.method.config, job.eval.size)
        self.plan: Plan = plan(job.episodes, job.eval, self.header, self.manifest, self.method.config.size)
        if self.plan.split == "novel":
            check_test(self.method.learnt(), self.plan.fold, self.manifest.classes)
        identity = self._identity()
        manifest = identity["data.manifest"]
        self.ranks = check_ranks(world, run.folder, config=digest(identity), manifest=manifest)
        world.on_main(lambda: run.open(identity, config_yaml))
        world.at_the_end(partial(run.set_status, "failed"))
        self.environment = world.on_main(lambda: run.record_environment(world.size, world.device))
        world.on_main(lambda: write_list(run.drawn, self.plan.episodes, self.manifest))
        for part in (self.method.trained, self.method.replica):
            part.to(world.device)

    def _identity(self) -> dict:
        """Everything that decides the counts of an episode, and which episodes there are."""
        config = asdict(self.job)
        if self.job.weights:  # they hold the frozen networks too: the files that training took these from may be gone
            config["method"] = {key: value for key, value in config["method"].items() if not key.endswith("_weights")}
        named = identity_of(config, manifest=digest(self.manifest.content()))
        parts = {"trained": self.method.trained, "replica": self.method.replica}
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
            "run.device": self.world.device.type,
        }

    def go(self) -> int:
        """Measure what is not yet recorded; when nothing is missing, tell."""
        wanted = len(self.plan.episodes)
        about = About(kind="evaluate", config=self._decided(), environment=self.environment)
        log = Log(self.run, self.job.log, active=self.world.is_main, about=about, total=wanted, unit="episodes")
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
                self.world.at_the_end(lambda: None)  # what became of the run is decided; viewers may take long
                self.world.alive("ending the log")
                log.close(failed=ending == "failed")
        self.world.wait()  # the first rank to exit with a code has the launcher stop the others
        return 0 if ending == "finished" else interrupted()

    def _decided(self) -> dict:
        """The job, with what weights and protocol have brought."""
        config, fold = asdict(self.job), self.plan.fold
        config["episodes"] |= {"scheme": fold.scheme, "fold": fold.fold, "shots": self.plan.shots}
        config["eval"]["seeds"] = sorted({episode.seed for episode in self.plan.episodes})
        return config

    def _set_status(self, status) -> None:
        if self.world.is_main:
            self.run.set_status(status)

    def _opening(self) -> list[str]:
        """What is evaluated and how, before the first episode."""
        said = self.plan.statement(self.manifest, self.header)
        width = max(map(len, said))
        return [
            f"{self.job.method.name} on {self.world.size} x {self.world.device.type}, {self.job.run.precision}; "
            f"run directory {self.run.folder}",
            *(f"{label:<{width}}  {words}" for label, words in said.items()),
            *(f"note: {text}" for text in (*self.notes, *self.method.cautions(self._episodes_seen()))),
        ]

    def _episodes_seen(self) -> int:
        return int(self.header.get("episodes_seen", 0))

    def _measure(self, log: Log, stop: StopRequest) -> list[Result]:
        wanted, world, said = len(self.plan.episodes), self.world, time.monotonic()

        def seen(result: Result, left: int) -> None:
            nonlocal said
            done = max(0, wanted - left * world.size)  # the ranks' shares are alike
            log.at(done)
            if left and time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                log.say(f"about {done} of {wanted} episodes, {result.seconds:.2f} s each")
                log.scalars(done, self._speed(result.seconds))

        return measure(
            self.method,
            self.shards,
            self.plan.episodes,
            self.plan.how,
            world,
            Record(self.run.episodes, world.rank),
            cache=self.job.eval.cache_gib,
            readers=self.job.data.workers,
            stop=stop,
            seen=seen,
        )

    def _speed(self, seconds: float) -> dict[str, float]:
        return {"speed/s_per_episode": seconds, "speed/peak_memory_mb": peak_memory_mb(self.world.device)}

    def _flops(self) -> int:
        if self.run.results.exists():  # finished before, and asked to tell it again
            return json.loads(self.run.results.read_text())["flops"]
        return episode_flops(self.method, self.shards, self.plan.episodes[0], self.plan.how, self.world.device)

    def _deliver(self, log: Log, results: list[Result]) -> None:
        """Scores into results.json, the log and the console, and the page to look at; rank 0's work."""
        found = outcome(results, self.plan.classes, self.manifest.classes)
        statement = self.plan.statement(self.manifest, self.header)

        def deliver() -> Path:
            parts = {"trained": self.method.trained, "frozen": self.method.replica}
            facts = {
                "protocol": statement,
                "scoring": asdict(self.plan.how),
                "ranks": self.world.size,
                "parameters": {part: sum(p.numel() for p in net.parameters()) for part, net in parts.items()},
                "flops": self._flops(),
                **found,
            }
            write_whole(self.run.results, json.dumps(facts, indent=1).encode())
            self.run.rewind(-1)  # a finished evaluation that is asked for again tells the same once more
            with self.world.autocast():
                return report(self.run, self.method, self.shards, results, self.plan, self.header, self.world.device)

        self.world.alive("writing the report")
        page = self.world.on_main(deliver)
        log.row({"step": len(results), **row(found)})
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
        for remark, count in found["remarks"].items():
            log.say(f"note: {count:,} of {len(results):,} episodes: {remark}")
        log.say(
            f"{found['encoder_passes']} encoder passes for {found['images']} images, "
            f"{found['seconds_per_episode']:.3f} s an episode on each rank; results: {self.run.results}"
        )
        for path in sorted(self.run.report.glob("*.png")):
            log.picture(len(results), f"report/{path.stem}", path)
        log.export(len(results), self.run.results)
        log.say(f"report: {page}")


def method_of(job: EvaluationJob) -> tuple[Method, dict[str, str], list[str]]:
    """The method to evaluate, what its weights say of their training, and what is unlike that training.

    With weights, options of the method that were given besides stand in for those that it was trained with.
    Raises ConfigError where a method that learns comes without weights, WeightsError where they do not fit.
    """
    name = job.method.name
    if job.weights is None:
        if METHODS[name].learns:
            raise ConfigError(f"method {name} learns but weights names no file: train it with launch/meta_train.py")
        torch.manual_seed(0)  # a backbone without weights is at least the same one everywhere
        return METHODS[name](job.method), {}, []
    method, header = load_method(Path(job.weights))
    asked, trained = asdict(job.method), asdict(method.config)
    changed = [key for key in asked if asked[key] != trained.get(key)]
    if files := [key for key in changed if key.endswith("_weights")]:
        raise ConfigError(
            f"method.{files[0]} is given beside weights {job.weights}, which hold that network already: leave it out"
        )
    if changed:
        tensors, _ = load_export(Path(job.weights))
        method = METHODS[name].restore(tensors, {**header, "config": json.dumps(asked)})
    return method, header, [f"method.{key} is {asked[key]}; trained with {trained.get(key)}" for key in changed]
