"""The gain from cached features and from a partition of episodes by image, and the scaling over ranks.

    python bench/evaluate.py [--episodes 200] [--size 225] [--backbone resnet18] [--shots 1] [--json FILE]

The prototype baseline with random weights on the embedded set, every rank on one thread. Keeping features is compared
with computing them anew for every episode, in CPU time of one process; ranks are compared by the clock, so two of them
want two quiet cores. All runs must find the same pixels.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from ranks import on_ranks

from fss.data.episodes import Episode, Policy, evaluation_episodes
from fss.data.folds import fold_of
from fss.distributed.context import DistributedContext
from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.record import EpisodeResult
from fss.evaluate.scoring import Scoring
from fss.methods.prototype import Prototype, PrototypeConfig
from shards.read import ShardSet
from shards.synthetic import synthetic
from shards.write import pack

CACHE_GIB = 4.0
PASSES_TARGET = 1.2
"""At most so many encoder passes for an image, on one rank and on four."""
RANKS_TARGET = 1.7
"""At least so much faster are two ranks than one."""


@dataclass(frozen=True)
class Work:
    """The settings of every run; sent to its ranks."""

    shards: str
    episodes: list[Episode]
    size: int
    backbone: str


@dataclass(frozen=True)
class Run:
    """The cost of one run on a rank."""

    results: list[EpisodeResult]
    wall: float
    cpu: float

    @property
    def encoded(self) -> int:
        return sum(result.encoded for result in self.results)


def run(work: Work, cache: float) -> Run:
    """Evaluate on this process's rank, all ranks from the same moment to the same moment."""
    torch.set_num_threads(1)
    context = DistributedContext(world_size=None, device="cpu", precision="float32", accumulate=1, timeout_minutes=60)
    torch.manual_seed(0)
    method = Prototype(PrototypeConfig(size=work.size, backbone=work.backbone))
    scoring, shards = Scoring(size=work.size), ShardSet(work.shards)
    predictor = predictor_for(method, scoring, context)
    measure(predictor, shards, work.episodes[:1], scoring, context)  # the first pass of a process is slower
    context.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    results = measure(predictor, shards, work.episodes, scoring, context, cache=cache)
    took = time.perf_counter() - wall, time.process_time() - cpu
    context.close()
    return Run(results, *took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--size", type=int, default=225, help="side of the input, pixels")
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--images", type=int, default=800, help="images of the set")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = pack(synthetic(args.images), Path(folder))
        novel = fold_of("interleaved", 0, manifest).novel
        policy = Policy(draw="round_robin", min_area=0)
        episodes = evaluation_episodes(manifest, novel, policy, args.shots, args.episodes, [0])
        work = Work(folder, episodes, args.size, args.backbone)
        kept, anew = run(work, CACHE_GIB), run(work, 0)
        two, four = (on_ranks(ranks, run, work, CACHE_GIB) for ranks in (2, 4))
    assert kept.results == anew.results == two.results == four.results, "the runs do not find the same pixels"

    images = len({image for episode in episodes for image in (episode.query, *episode.supports)})
    figures = {
        "episodes": len(episodes),
        "images": images,
        "s_per_episode": kept.wall / len(episodes),
        "kept_of_anew_cpu": kept.cpu / anew.cpu,
        "passes_per_image": {ranks: took.encoded / images for ranks, took in ((1, kept), (2, two), (4, four))},
        "passes_per_image_anew": anew.encoded / images,
        "two_ranks": kept.wall / two.wall,
    }
    print(f"{len(episodes)} episodes of {args.shots} shot(s) with {images} images, {args.backbone}, {args.size} px")
    print(f"one rank: {kept.wall:.1f} s, {figures['s_per_episode']:.3f} s an episode")
    print(f"keeping features takes {figures['kept_of_anew_cpu']:.2f} of the CPU time of computing them anew")
    print(f"encoder passes an image with nothing kept: {anew.encoded / images:.3f}")
    for ranks, passes in figures["passes_per_image"].items():
        print(f"encoder passes an image on {ranks} rank(s): {passes:.3f} (at most {PASSES_TARGET})")
    print(f"two ranks are {figures['two_ranks']:.2f} times as fast as one (at least {RANKS_TARGET})")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
