"""The frame of a study: it opens the episodes of an evaluation, measures each, and publishes a table."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from fss.data.class_leakage import check_novel_unseen
from fss.data.episodes import Episode
from fss.data.shard_sets import open_shard_set
from fss.distributed.context import DistributedContext
from fss.evaluate.loading import load_for_evaluation
from fss.evaluate.measure import measure
from fss.evaluate.plan import EvaluationPlan, plan_evaluation, require_valid_size
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.record import EpisodeResult
from fss.evaluate.scoring import Scoring
from fss.jobs.evaluate import EvaluationJob
from fss.methods.base import EpisodeMethod
from fss.nn.exports import ExportHeader
from fss.provenance import digest
from fss.report.tables import Table, on_console
from shards.read import ShardSet

Row = TypeVar("Row")


class StudyJob(EvaluationJob, Protocol):
    """The options of a job that a study reads: those of an evaluation, and a folder for the result."""

    @property
    def out(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Study:
    """A method on the device of its rank, and the episodes of the study."""

    context: DistributedContext
    shards: ShardSet
    method: EpisodeMethod
    header: ExportHeader
    """Of the method's weights; empty if it needs no training."""
    plan: EvaluationPlan

    def statement(self) -> dict[str, str]:
        """The protocol of the episodes, label -> words."""
        return self.plan.statement(self.shards.manifest, self.header)

    def publish(self, table: Table, write: Callable[[], Path]) -> None:
        """Call `write` and show the table on the console, on rank 0. Collective."""
        path = self.context.on_main(write)
        if self.context.is_main:
            console = Console()
            console.print(on_console(table))
            console.print(f"written: {path}", soft_wrap=True)


@contextmanager
def open_study(job: StudyJob) -> Iterator[Study]:
    """Join the ranks and open shards, method and episodes.

    Raises UserError or ShardError if an option, a file or the data do not fit.
    """
    with DistributedContext.from_config(job.run, threads=1) as context:
        shards = open_shard_set(job.data, context.on_main)
        method, header, _ = load_for_evaluation(job)
        require_valid_size(method.config, job.eval.size)
        plan = plan_evaluation(job.episodes, job.eval, header, shards.manifest, method.config.size)
        if plan.split == "novel":
            check_novel_unseen(method.seen_classes(), plan.fold, shards.manifest.classes)
        context.check_same("the episodes", digest([asdict(episode) for episode in plan.episodes]))
        for part in (method.trainable, method.non_trainable):
            part.to(context.device)
        yield Study(context=context, shards=shards, method=method, header=header, plan=plan)


def map_episodes(
    row: Callable[[EpisodeResult], Row],
    predictor: EpisodePredictor,
    shards: ShardSet,
    episodes: Sequence[Episode],
    scoring: Scoring,
    context: DistributedContext,
    *,
    cache: float = 4,
    readers: int = 2,
) -> list[Row]:
    """Compute a row of every episode; every rank gets all rows in the order of the episodes. Collective.

    row: called right after `predictor` predicted the episode, on the rank that did.
    """
    rows: dict[tuple[int, int], Row] = {}

    def on_result(result: EpisodeResult, left: int) -> None:
        rows[result.seed, result.number] = row(result)

    measure(predictor, shards, episodes, scoring, context, cache=cache, readers=readers, on_result=on_result)
    gathered = [entry for entries in context.gather_objects(list(rows.items())) for entry in entries]
    return [row for _, row in sorted(gathered, key=lambda entry: entry[0])]
