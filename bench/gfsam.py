"""The cost of GF-SAM without its networks, as a ratio to the same computation at full resolution (plain_gfsam.py).

    python bench/gfsam.py [--shots 1 5] [--points 128] [--grid 37] [--channels 1024] [--runs 5] [--threads 1]

From patch tokens, reference masks and the decoder's 256 x 256 logits, all made up, to the final mask at 1024 x 1024.
The program checks that both choose the same points, clusters and gates, and give the same mask but inside masks whose
part in growth is rounding. They take turns and the median CPU time of each counts; "from cache" is the shipped one
with features and references from the cache. Extra memory is how far the peak of a process of its own rises
over its memory before (Linux). The allocator has the same settings for both: it keeps its memory while time is
measured, because page faults would otherwise be much of the plain one's, and returns all of it while memory is
measured.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import plain_gfsam
import torch
from torch import Tensor
from torch.nn import functional as F

from fss.nn.alignment import Alignment, align, encode_support, prompts, unit_features
from fss.nn.gfsam_rules import Rules
from fss.nn.pointgraph import Outcome, segment

SIZE, LOW = 1024, 256
NOISE = 1e-4  # growth by less, in positions of the grid, is rounding


KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
RETURN = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class Stages:
    """CPU seconds by stage, run by run."""

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seen[name].append(time.process_time() - start)

    def medians(self) -> dict[str, float]:
        """Milliseconds by stage, the first run left out."""
        return {name: 1e3 * statistics.median(row[1:] or row) for name, row in self.seen.items()}


class Scene:
    """Patch tokens and masks of images that show the same object of two parts, and what a decoder answers to prompts:
    to each a blob inside the part, or the background, where it lies."""

    def __init__(self, shots: int, points: int, grid: int, channels: int):
        torch.manual_seed(0)
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, LOW)] * 2, indexing="ij")
        left, right = ((x - centre) ** 2 + (y - 0.1) ** 2 < 0.15 for centre in (-0.4, 0.45))
        parts = left.long() + 2 * (right & ~left).long()  # [LOW, LOW]: 0 the background
        small = F.interpolate(parts[None, None].float(), (grid, grid))[0, 0].long().flatten()
        looks = torch.randn(3, channels)
        self.tokens = looks[small] + torch.randn(1 + shots, grid * grid, channels)  # of the target first
        self.masks = F.interpolate((parts > 0)[None, None].byte(), (SIZE, SIZE))[0].repeat(shots, 1, 1)
        self.rules = Rules(limit=points)
        self.logits = self.decode(parts, x, y, prompts(self.align().points, grid, SIZE, self.rules))

    @staticmethod
    def decode(parts: Tensor, x: Tensor, y: Tensor, pixels: Tensor) -> Tensor:
        """Logits [N, LOW, LOW] for prompts (x, y) [N, 2]."""
        answers = []
        for column, row in (pixels * LOW // SIZE).tolist():
            away = (x - x[row, column]).hypot(y - y[row, column])
            reach = 0.2 + 0.1 * ((7 * column + 13 * row) % 8)
            answers.append(8 * torch.where(parts == parts[row, column], reach - away, -0.2 - away))
        return torch.stack(answers)

    def cache(self) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The content of the feature cache: features of the target and descriptions of the references."""
        target, *supports = (unit_features(tokens, self.rules) for tokens in self.tokens)
        return target, [encode_support(f, m[None], self.rules) for f, m in zip(supports, self.masks, strict=True)]

    def align(self) -> Alignment:
        target, references = self.cache()
        return align(target, references, self.rules)

    def ours(self, stage: Stages) -> tuple[Alignment, Outcome]:
        with stage("features, references"):
            target, references = self.cache()
        with stage("maps, points"):
            alignment = align(target, references, self.rules)
        with stage("graph, gates, merge"):
            return alignment, segment(target, alignment, self.logits, SIZE, self.rules)

    def plain(self, stage: Stages) -> plain_gfsam.Plain:
        return plain_gfsam.segment(self.tokens[0], self.tokens[1:], self.masks, lambda pixels: self.logits, SIZE, stage)


def check(scene: Scene) -> str:
    """Assert that both give the same result; returns a line about it."""
    alignment, found = scene.ours(Stages())
    expected = scene.plain(Stages())
    assert alignment.points.equal(expected.points), "points differ"
    assert found.clusters.equal(expected.clusters), "clusters differ"
    assert found.consistent.equal(expected.consistent), "self-consistency differs"
    decided = found.gating.margin.abs() >= NOISE
    assert found.gating.accepted[decided].equal(expected.accepted[decided]), "mask growth differs"
    differ = found.mask ^ expected.mask
    doubtful = F.interpolate(scene.logits[~decided][:, None], (SIZE, SIZE), mode="bilinear")[:, 0] > 0
    assert not (differ & ~doubtful.any(0)).any(), "final masks differ"
    return (
        f"{len(alignment.points)} points, {int(found.clusters.max()) + 1} clusters, {int(found.chosen.sum())} masks "
        f"merged, {int(differ.sum())} px differ"
    )


def take_time(scene: Scene, runs: int) -> dict:
    """The line of `check` and the milliseconds of the stages of both."""
    line, stages = check(scene), {"ours": Stages(), "plain": Stages()}
    for _ in range(runs + 1):
        for name, taken in stages.items():
            getattr(scene, name)(taken)
    return {"line": line, "ms": {name: taken.medians() for name, taken in stages.items()}}


def extra_mib(scene: Scene, name: str) -> float:
    """The rise of this process's peak memory during one run, MiB."""
    torch.ones(64, 64) @ torch.ones(64, 64)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now the current size
    before = peak_mib()
    getattr(scene, name)(Stages())
    return peak_mib() - before


def peak_mib() -> float:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def alone(what: str, shots: int, allocator: dict[str, str]) -> object:
    """The result of one measurement in a process of its own."""
    command = [sys.executable, *sys.argv, "--alone", what, "--shots", str(shots)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | allocator)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--points", type=int, default=128, help="the most points")
    parser.add_argument("--grid", type=int, default=37)
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5, help="runs of each, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", choices=["time", "ours", "plain"], help="print one measurement as JSON")
    args = parser.parse_args()
    if args.alone:
        torch.set_num_threads(args.threads)
        torch.set_grad_enabled(False)
        scene = Scene(args.shots[0], args.points, args.grid, args.channels)
        print(json.dumps(take_time(scene, args.runs) if args.alone == "time" else extra_mib(scene, args.alone)))
        return
    for shots in args.shots:
        found = alone("time", shots, KEEP)
        memory = {name: alone(name, shots, RETURN) for name in ("ours", "plain")}
        total = {name: sum(stages.values()) for name, stages in found["ms"].items()}
        cached = total["ours"] - found["ms"]["ours"]["features, references"]
        print(f"{shots}-shot: {found['line']}")
        for name, stages in found["ms"].items():
            each = ", ".join(f"{stage} {ms:.0f}" for stage, ms in stages.items())
            print(f"  {name:5} {total[name]:6.0f} ms CPU ({each}); {memory[name]:.0f} MiB extra")
        print(
            f"  ratio {total['plain'] / total['ours']:.1f} in time, {total['plain'] / cached:.1f} from cache; "
            f"{memory['plain'] / memory['ours']:.1f} in memory",
            flush=True,
        )


if __name__ == "__main__":
    main()
