"""What every study does: opens what an evaluation of the job would have, looks at each episode, tells what it found."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from fss.data.episodes import Episode
from fss.engine.dist import World
from fss.engine.evaluate import EvaluationJob, method_of
from fss.engine.evaluation.measure import Scoring, measure
from fss.engine.evaluation.plan import Plan, plan, require_taken
from fss.engine.evaluation.record import Result
from fss.engine.learnt import check_test
from fss.engine.reports.page import Table, on_console
from fss.engine.run import digest
from fss.engine.tasks.task import open_shards
from fss.methods.base import Method
from shards.read import ShardSet

Row = TypeVar("Row")


class StudyJob(EvaluationJob, Protocol):
    """What a study needs of a job: that of an evaluation, and a folder."""

    out: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A method on the world's device, and the episodes that it is looked at on."""

    world: World
    shards: ShardSet
    method: Method
    header: dict[str, str]
    """What the method's weights say of their training."""
    plan: Plan

    def facts(self) -> dict[str, str]:
        """How the episodes were made."""
        return self.plan.statement(self.shards.manifest, self.header)

    def tell(self, table: Table, write: Callable[[], Path]) -> None:
        """Write what was found, and show it on the console: rank 0's work. Collective."""
        path = self.world.on_main(write)
        if self.world.is_main:
            console = Console()
            console.print(on_console(table))
            console.print(f"written: {path}", soft_wrap=True)


@contextmanager
def study(job: StudyJob) -> Iterator[Study]:
    """Join the ranks and open what the job names. Raises UserError or ShardError for what a user can mend."""
    with World.at(job.run, threads=1) as world:
        shards = open_shards(job.data, world)
        method, header, _ = method_of(job)
        require_taken(method.config, job.eval.size)
        what = plan(job.episodes, job.eval, header, shards.manifest, method.config.size)
        if what.split == "novel":
            check_test(method.learnt(), what.fold, shards.manifest.classes)
        world.check_same("the episodes", digest([asdict(episode) for episode in what.episodes]))
        for part in (method.trained, method.replica):
            part.to(world.device)
        yield Study(world=world, shards=shards, method=method, header=header, plan=what)


def look(
    row: Callable[[Result], Row],
    method: Any,
    shards: ShardSet,
    episodes: Sequence[Episode],
    how: Scoring,
    world: World,
    *,
    cache: float = 4,
    readers: int = 2,
) -> list[Row]:
    """`row` of every episode, called right after `method` predicted it; in order, on every rank. Collective."""
    rows: dict[tuple[int, int], Row] = {}

    def seen(result: Result, left: int) -> None:
        rows[result.seed, result.number] = row(result)

    measure(method, shards, episodes, how, world, cache=cache, readers=readers, seen=seen)
    everyone = [entry for entries in world.gather_objects(list(rows.items())) for entry in entries]
    return [found for _, found in sorted(everyone, key=lambda entry: entry[0])]
