"""The model of bench/links.py against real ranks on this machine: bytes on the wire, seconds of collectives and steps.

gloo over loopback, one thread a rank. alpha and beta are taken from an all-reduce of one byte and one of 32 MiB
between two ranks; what more ranks take is then computed. A loopback moves bytes with the processor: n ranks on c cores
get c / n of the rate each, and of the processor. The fastest of several tries counts, which other work on the machine
disturbs least.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch
from links import Cluster, Link
from ranks import on_ranks
from traffic import Call, Pretraining, views

from fss.distributed.context import DistributedContext
from fss.methods.base import StepContext
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor

SMALL = {"backbone": "resnet18", "view_size": 64, "patch_size": 64, "queue": 4096, "local_queue": 4096}
IMAGES = 48  # of a rank: whole parts for 2, 3, 4, 8 and 16 ranks
STEPS, TRIES = 4, 6
LARGE = 32 << 20
SEEN = 64 << 10  # bytes from which the headers of the wire do not matter


@dataclass(frozen=True)
class Took:
    """Bytes and seconds of one collective or one step on rank 0, the fastest of its kind."""

    seconds: float
    wire: float
    """Bytes that a rank received, on average over ranks."""


def timed(world_size: int, calls: list[Call]) -> tuple[list[Took], Took]:
    """This rank's account of each call, and of a training step, among `world_size` ranks."""
    torch.set_num_threads(1)
    with DistributedContext(
        world_size=world_size, device="cpu", precision="float32", accumulate=1, timeout_minutes=10
    ) as context:
        return [collective(call, context) for call in calls], step(context)


def collective(call: Call, context: DistributedContext) -> Took:
    """Time one call whose contents are zeros."""
    if call.kind == "all_reduce":
        x = torch.zeros(call.bytes, dtype=torch.uint8) if call.bytes % 4 else torch.zeros(call.bytes // 4)
        return fastest(lambda: context.collectives.all_reduce(x), context, TRIES)
    x = torch.zeros(IMAGES, call.bytes // IMAGES, dtype=torch.uint8)
    parts = [IMAGES // context.world_size] * context.world_size
    if call.kind == "all_gather":
        return fastest(lambda: context.collectives.all_gather(x), context, TRIES)
    return fastest(lambda: context.collectives.all_to_all(x, parts, parts), context, TRIES)


def step(context: DistributedContext) -> Took:
    """A pretraining step as `Trainer` takes it."""
    torch.manual_seed(0)
    method = PriorExtractor(PriorConfig(**SMALL))
    forward, optimizer = context.wrap(method, torch.optim.SGD(method.param_groups(), lr=0.01, momentum=0.9, fused=True))
    batch = views(IMAGES, method.config)

    def take() -> None:
        with context.accumulate(forward):
            loss, _ = forward(batch, 0)
            context.backward(loss)
        context.collectives.all_reduce(torch.zeros(3))
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(StepContext(context.collectives))

    return fastest(take, context, STEPS)


def fastest(action: Callable[[], object], context: DistributedContext, tries: int) -> Took:
    """The shortest time of `action`, all ranks beginning together, after one to warm up; the median of its bytes."""
    seconds, wire = [], []
    for _ in range(tries + 1):
        context.barrier()
        sent, began = on_the_wire(), time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
        context.barrier()
        wire.append(on_the_wire() - sent)
    return Took(min(seconds[1:]), sorted(wire[1:])[tries // 2] / context.world_size)


def on_the_wire() -> int:
    """Bytes that the loopback of this network namespace has carried."""
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


def loopback() -> Link:
    """alpha and beta of this machine between two ranks."""
    (tiny, large), _ = on_ranks(2, timed, 2, [Call("tiny", "all_reduce", 1), Call("large", "all_reduce", LARGE)])
    return Link(hop=tiny.seconds / 2, rate=LARGE / (large.seconds - tiny.seconds))


def check(worlds: list[int]) -> None:
    """Print computed and measured values for every number of ranks."""
    cores = os.cpu_count()
    calls = Counter(Pretraining(**SMALL).calls(IMAGES))
    link = loopback()
    _, alone = on_ranks(1, timed, 1, [])
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f}; ResNet-18, {IMAGES} images a rank, float32, one thread")
    print(f"two ranks: {1e6 * link.hop:.0f} us a hop, {link.rate / 1e9:.2f} GB/s; a step alone {alone.seconds:.2f} s\n")
    print(f"{'':32} {'MB: computed':>13} {'wire':>7} {'ms: computed':>13} {'took':>8}")
    for world_size in worlds:
        share = min(1, cores / world_size)
        here = replace(link, rate=link.rate * share)
        machine = Cluster(inside=here, between=here, node=world_size, trees=False)
        each, whole = on_ranks(world_size, timed, world_size, list(calls))
        for (call, count), took in zip(calls.items(), each, strict=True):
            wire = f"{took.wire / 1e6:7.3f}" if call.bytes >= SEEN else f"{'':7}"
            row(
                world_size,
                call.what,
                count,
                call.received(world_size),
                wire,
                machine.seconds(call, world_size),
                took.seconds,
            )
        sent = sum(count * call.received(world_size) for call, count in calls.items())
        waits = sum(count * machine.seconds(call, world_size) for call, count in calls.items())
        row(world_size, "a step", 1, sent, f"{whole.wire / 1e6:7.3f}", alone.seconds / share + waits, whole.seconds)


def row(world_size: int, what: str, count: int, size: float, wire: str, computed: float, took: float) -> None:
    milliseconds = f"{1e3 * computed:13.2f} {1e3 * took:8.2f}"
    print(f"{world_size} ranks {what:20} {count:3} {size / 1e6:13.3f} {wire} {milliseconds}", flush=True)
