"""The efficiency of training on 8 to 1024 GPUs, from the time of a step, its bytes and the links.

    python bench/scaling.py                                 the plan, for a GPU of MoCo's published rate
    python bench/scaling.py --rate 1000                     for one that pretrains on 1000 images/s
    python bench/scaling.py --step-s pretrain=0.06          or for step times that were measured
    python bench/scaling.py --measure [--ranks 2 3 4]       the same model against real ranks on this machine

A step takes the time of one rank, and then what of its collectives is not hidden. Gradients are reduced in buckets
while the backward pass runs, after the keys for the queue; images are shuffled while the queries are computed;
everything else waits for itself. What a step sends comes from the shipped methods (bench/traffic.py), what that costs
from alpha and beta (bench/links.py). A step of each job is timed here, on one thread of a CPU: that gives the ratios
between the jobs and the share of the backward pass; --rate carries them over to a GPU.
"""

import argparse
import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace

import torch
from check_scaling import check
from links import Cluster, network
from traffic import (
    GRADIENTS,
    KEYS,
    META,
    SHUFFLED,
    SHUFFLES,
    Call,
    Pretraining,
    episodes,
    meta_training,
    received,
    views,
)

from fss.data.batch import EpisodeBatch, ViewBatch
from fss.methods.base import Method, StepContext
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor

WORLDS = (8, 16, 32, 64, 128, 256, 512, 1024)
NETWORKS = (100, 400, 3200)
PER_RANK = 32  # images, of pretraining: 256 on 8 GPUs, MoCo's recipe
PAPER = {False: (256, 2), True: (8, 1)}  # of episodes? -> the papers' batch; what a rank needs (batch statistics: 2)
SIDE = 473  # px, of meta-training
BUCKET, FIRST_BUCKET = 25 << 20, 1 << 20  # bytes, DDP's defaults


@dataclass(frozen=True)
class Cost:
    """The cost of a step for one rank."""

    seconds: float
    """Of a step alone."""
    backward: float
    """The backward pass's share of it."""


@dataclass(frozen=True)
class Job:
    """A step of one rank: what it computes, and what it sends."""

    name: str
    samples: int
    """Images or episodes of a rank."""
    cost: Cost
    calls: list[Call]

    def exposed(self, cluster: Cluster, world_size: int) -> dict[str, float]:
        """Seconds by collective that a rank of `world_size` waits and does not compute, the longest first."""
        waits: Counter[str] = Counter()
        backward = self.cost.seconds * self.cost.backward
        queries = (self.cost.seconds - backward) / 2  # the forward pass of queries, of the same length as that of keys
        for call in self.calls:
            if call.what in (GRADIENTS, KEYS):
                continue
            hidden = queries if call.what == SHUFFLED and call.kind == "all_to_all" else 0  # not as published
            waits[call.what] += max(0.0, cluster.seconds(call, world_size) - hidden)
        waits[GRADIENTS] = self._behind_backward(backward, cluster, world_size)
        return dict(waits.most_common())

    def _behind_backward(self, backward: float, cluster: Cluster, world_size: int) -> float:
        """The rest of the gradients' all-reduce after the end of a backward pass of b seconds.

        k equal buckets, the i-th full at i b / k, are reduced one after the other in T / k each; before them the keys
        travel, K seconds. Either the first waits for all others, K + T - b (1 - 1 / k), or only the last is late,
        T / k.
        """
        (gradients,) = (call for call in self.calls if call.what == GRADIENTS)
        keys = sum(cluster.seconds(call, world_size) for call in self.calls if call.what == KEYS)
        k = 1 + math.ceil(max(0, gradients.bytes - FIRST_BUCKET) / BUCKET)
        whole = k * cluster.seconds(replace(gradients, bytes=gradients.bytes // k), world_size)
        return max(whole / k, keys + whole - backward * (1 - 1 / k))

    def efficiency(self, cluster: Cluster, world_size: int) -> float:
        """Of a rank of `world_size`, against one that is alone."""
        return self.cost.seconds / (self.cost.seconds + sum(self.exposed(cluster, world_size).values()))


def timed(method: Method, batch: ViewBatch | EpisodeBatch, repeats: int) -> Cost:
    """CPU seconds of a step of `method` on this process, median, after one to warm up."""
    optimizer = torch.optim.SGD(method.param_groups(), lr=0.01, momentum=0.9, fused=True)
    steps, shares = [], []
    for step in range(repeats + 1):
        began = time.process_time()
        loss, _ = method.loss(batch, StepContext(step=step))
        forward = time.process_time()
        loss.backward()
        backward = time.process_time() - forward
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(StepContext())
        steps.append(time.process_time() - began)
        shares.append(backward / steps[-1])
    return Cost(statistics.median(steps[1:]), statistics.median(shares[1:]))


def costs(rate: float, given: dict[str, float], repeats: int) -> dict[str, Cost]:
    """Of every job on one GPU: PER_RANK images of pretraining at `rate` images/s, one episode of each method.

    given: seconds of a step that were measured elsewhere, by job.
    """
    torch.manual_seed(0)
    config = PriorConfig()
    images = 8
    here = {"pretrain": timed(PriorExtractor(config), views(images, config), repeats)}
    here |= {name: timed(build(), episodes(1, SIDE), repeats) for name, build in META.items()}
    of_an_image = here["pretrain"].seconds / images
    found = {}
    print(
        f"one thread of this CPU: {of_an_image:.2f} s an image of pretraining, of which the backward pass is "
        f"{here['pretrain'].backward:.0%}"
    )
    for name, cost in here.items():
        samples = PER_RANK if name == "pretrain" else cost.seconds / of_an_image
        found[name] = replace(cost, seconds=given.get(name, samples / rate))
        if name != "pretrain":
            print(f"    {name:8} {cost.seconds:6.2f} s an episode, backward {cost.backward:.0%}")
    return found


def jobs(cost: dict[str, Cost]) -> list[Job]:
    """Pretraining under every shuffle, and meta-training of every method."""
    pretraining = [Job(f"pretrain, {s}", PER_RANK, cost["pretrain"], Pretraining(s).calls(PER_RANK)) for s in SHUFFLES]
    return pretraining + [Job(name, 1, cost[name], meta_training(name)) for name in META]


def weak(jobs: list[Job], worlds: list[int], networks: list[float], node: int, floor: float) -> None:
    """Print the efficiency where every rank keeps its batch, and what ends it."""
    for gbit in networks:
        cluster = network(gbit, node)
        print(f"\nefficiency, {gbit:g} Gbit/s for a node of {node}; each rank keeps its batch")
        print(
            f"{'':20} {'step, s':>8}" + "".join(f"{world_size:>6}" for world_size in worlds) + f"   below {floor:.0%}"
        )
        for job in jobs:
            found = {world_size: job.efficiency(cluster, world_size) for world_size in worlds}
            cells = "".join(f"{value:>6.0%}" for value in found.values())
            low = next((world_size for world_size, value in found.items() if value < floor), None)
            why = f"from {low}: {next(iter(job.exposed(cluster, low)))}" if low else "-"
            print(f"{job.name:20} {job.cost.seconds:8.3f}{cells}   {why}")


def strong(jobs: list[Job], worlds: list[int], gbit: float, node: int) -> None:
    """Print what is gained where the papers' batch is shared among ever more ranks, to where it cannot be."""
    cluster = network(gbit, node)
    print(f"\nspeed against {worlds[0]} GPUs, {gbit:g} Gbit/s for a node; all ranks share the papers' batch")
    print(f"{'':20} {'batch':>8}" + "".join(f"{world_size:>6}" for world_size in worlds))
    pretraining = Pretraining()
    for job in jobs:
        batch, least = PAPER[job.name in META]
        took = {}
        for world_size in worlds:
            if batch // world_size < least:
                break
            each = batch // world_size
            cost = replace(job.cost, seconds=job.cost.seconds * each / job.samples)
            here = Job(job.name, each, cost, job.calls if job.name in META else pretraining.calls(each))
            took[world_size] = cost.seconds / here.efficiency(cluster, world_size)
        cells = "".join(f"{took[worlds[0]] / seconds:>6.2f}" for seconds in took.values())
        print(f"{job.name:20} {batch:>8}{cells}" + f"{'-':>6}" * (len(worlds) - len(took)))


def breakdown(jobs: list[Job], worlds: list[int], gbit: float, node: int) -> None:
    """Print bytes and waiting by collective at the smallest and the largest number of ranks."""
    cluster = network(gbit, node)
    ends = (worlds[0], worlds[-1])
    print(f"\nMB that a rank receives in a step, and ms that it waits, {gbit:g} Gbit/s for a node of {node}")
    print(f"{'':20} {'':20}" + "".join(f"{f'{world_size} ranks: MB':>16}{'ms':>9}" for world_size in ends))
    for job in jobs:
        waits = {world_size: job.exposed(cluster, world_size) for world_size in ends}
        sizes = {world_size: received(job.calls, world_size) for world_size in ends}
        for what in waits[ends[-1]]:
            cells = (
                f"{sizes[world_size][what] / 1e6:16.2f}{1e3 * waits[world_size][what]:9.2f}" for world_size in ends
            )
            print(f"{job.name:20} {what:20}" + "".join(cells))


def step_time(text: str) -> tuple[str, float]:
    """'NAME=SECONDS' of one job."""
    name, _, seconds = text.partition("=")
    if name not in ("pretrain", *META):
        raise argparse.ArgumentTypeError(f"{text}: give one of pretrain, {', '.join(META)} and seconds, as qgnet=0.1")
    return name, float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rate",
        type=float,
        default=142,
        help="images/s of pretraining with patches on one GPU: a "
        "V100's, MoCo's published 1343 on eight less 18 %% for the patches",
    )
    parser.add_argument(
        "--step-s",
        type=step_time,
        nargs="+",
        default=[],
        metavar="JOB=S",
        help=f"seconds of a step on one GPU: {PER_RANK} images of pretrain, an episode of a method",
    )
    parser.add_argument("--worlds", type=int, nargs="+", default=list(WORLDS), help="numbers of GPUs")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--networks", type=float, nargs="+", default=list(NETWORKS), help="Gbit/s of a node, nominal")
    parser.add_argument("--floor", type=float, default=0.9, help="efficiency that counts as scaling")
    parser.add_argument("--repeats", type=int, default=2, help="steps of each job that are timed here")
    parser.add_argument("--measure", action="store_true", help="check the model on this machine instead")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4], help="of --measure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        check(args.ranks)
        return
    cost = costs(args.rate, dict(args.step_s), args.repeats)
    planned = jobs(cost)
    weak(planned, args.worlds, args.networks, args.node, args.floor)
    one_shuffle = [job for job in planned if job.name in (f"pretrain, {SHUFFLES[0]}", *META)]
    strong(one_shuffle, args.worlds, args.networks[0], args.node)
    breakdown(planned, args.worlds, args.networks[0], args.node)


if __name__ == "__main__":
    main()
