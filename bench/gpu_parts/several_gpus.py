"""All-reduce between GPUs, and a training step on one against several."""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.distributed as dist
from ranks import on_ranks

from fss.distributed.context import DistributedContext
from gpu_parts.cases import Case, cases
from gpu_parts.part import Part, Row, Settings, Skipped, Values, number, percent
from gpu_parts.stepping import Step, job_context, seconds_of, wait_for

COLUMNS = ("ms", "images or episodes/s", "of ideal", "bus GB/s")
MESSAGES = {"1 MB": 1 << 20, "16 MB": 16 << 20, "112 MB": 112 << 20}
"""Bytes of an all-reduce; the last are the gradients of a ResNet-50 with its head."""
STEPPED = ("prior, patch", "QGNet")
CALLS = 20


def messages(settings: Settings) -> list[str]:
    """Those that are sent."""
    return list(MESSAGES)[: 1 if settings.small else None]


@cache
def seconds(world_size: int, settings: Settings) -> dict[str, float]:
    """Name of a message or of a method -> seconds, of rank 0 of so many ranks; each rank has its own batch."""
    return on_ranks(world_size, on_this_rank, settings)


def on_this_rank(settings: Settings) -> dict[str, float]:
    """The same, on one of the ranks."""
    with job_context(settings.device, "tf32") as context:
        actions: dict[str, Callable[[], object]] = {
            case.name: Step(case, case.batches[-1], context) for case in cases(settings.small) if case.name in STEPPED
        }
        if context.world_size > 1:
            for name in messages(settings):
                actions[name] = partial(dist.all_reduce, torch.zeros(MESSAGES[name] // 4, device=context.device))
        return {name: together(action, context, 2 if settings.small else CALLS) for name, action in actions.items()}


def together(action: Callable[[], object], context: DistributedContext, calls: int) -> float:
    """Mean seconds of calls in a row that all ranks make, after two to warm up."""
    for _ in range(2):
        action()
    wait_for(context.device)
    context.barrier()
    return seconds_of(lambda: [action() for _ in range(calls)], context.device) / calls


def all_reduce(world_size: int, name: str, settings: Settings) -> Values:
    """The bus bandwidth is 2 (n - 1) / n bytes a second: what each link carries, whatever n."""
    took = seconds(world_size, settings)[name]
    rate = 2 * (world_size - 1) / world_size * MESSAGES[name] / took
    return {"ms": number(1e3 * took), "bus GB/s": number(rate / 1e9)}


def scaling(world_size: int, case: Case, settings: Settings) -> Values:
    """The ideal are as many times the images of one rank as there are ranks."""
    alone, took = (seconds(ranks, settings)[case.name] for ranks in (1, world_size))
    found = (number(1e3 * took), number(world_size * case.batches[-1] / took), percent(alone / took))
    return dict(zip(COLUMNS, found, strict=False))


def skip() -> Values:
    raise Skipped("this machine has one GPU")


def rows(settings: Settings) -> list[Row]:
    """One GPU, all, and two; on a CPU one process and two."""
    most = torch.cuda.device_count() if settings.device == "cuda" else 2
    if most < 2:
        return [Row(("all-reduce, scaling", NO_BATCH, "1"), skip)]
    found = []
    for ranks in dict.fromkeys([1, most, 2]):  # what is measured in one start of the ranks stands together
        found += [
            Row((case.name, str(case.batches[-1]), str(ranks)), partial(scaling, ranks, case, settings))
            for case in cases(settings.small)
            if case.name in STEPPED
        ]
        if ranks > 1:
            found += [
                Row((f"all-reduce of {name}", NO_BATCH, str(ranks)), partial(all_reduce, ranks, name, settings))
                for name in messages(settings)
            ]
    return found


NO_BATCH = ""
PART = Part(
    title="Several GPUs",
    note="float32 sums by NCCL (on CPUs by gloo); optimizer steps in tf32 with the same batch on every rank, as under "
    "accelerate's launcher. Of ideal: images a second against those of one GPU times the number.",
    labels=("what", "batch of a rank", "ranks"),
    columns=COLUMNS,
    rows=rows,
)
