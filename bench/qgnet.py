"""The cost of a training step of QGNet, as a ratio to the same step in the shape of the reference implementation.

    python bench/qgnet.py [--sizes 225 473] [--batches 1 4] [--steps 3] [--threads 1] [--json FILE]

All have the same random weights (ResNet-50 twice, K = 1, both maps), and the program checks that the shipped step in
float32 gives the plain one's logits. They take turns, step by step, and the median CPU time of each counts; the peak
memory of each is that of a process of its own.

The plain step sends queries and supports through the backbone one after the other, tiles the prototype, divides the
products of all pairs of positions by the products of their norms, and concatenates the pyramid at full size. Nothing in
it is done twice.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traffic import episodes

from fss.data.batch import EpisodeBatch
from fss.methods.base import StepContext
from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import QGNet
from fss.nn.exports import ExportHeader
from fss.nn.resnet import PointwiseConv2d

SGD = {"lr": 0.025, "momentum": 0.9, "weight_decay": 1e-4}
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def build() -> QGNet:
    """The paper's network with random weights, without dropout, which would make the two draw differently."""
    torch.manual_seed(0)
    header = ExportHeader(prior=ExportHeader(method="prior", backbone="resnet50"))
    return QGNet(QGNetConfig(reduction_dropout=0, classifier_dropout=0), header=header)


def up(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=True)


class Plain:
    """The step as the reference implementation shapes it, with the networks of a QGNet, which are made plain for it."""

    def __init__(self, method: QGNet):
        self.trainable, frozen = method.trainable, method.non_trainable
        for module in (self.trainable, frozen):
            module.to(memory_format=torch.contiguous_format)
            for layer in module.modules():
                if type(layer) is PointwiseConv2d:
                    layer.__class__ = nn.Conv2d
        self.backbone, self.prior, self.normalize = frozen["backbone"], frozen["prior"], frozen["normalize"]

    def loss(self, batch: EpisodeBatch) -> Tensor:
        logits, inner = self.forward(batch)
        target, side = batch.query_mask.long(), batch.query_mask.shape[-1]
        main = F.cross_entropy(up(logits, side), target, ignore_index=255)
        return main + sum(F.cross_entropy(up(x, side), target, ignore_index=255) for x in inner) / len(inner)

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad():
            query2, query3, query4 = self._blocks(self.backbone, self.normalize(batch.query))
            *_, prior4 = self._blocks(self.prior, self.normalize(batch.query))
            maps, prototypes = [self._similarity(query4, prior4)], []
        guided = []
        for shot in range(batch.support.shape[1]):
            with torch.no_grad():
                support2, support3 = self._middle(self.backbone, self.normalize(batch.support[:, shot]))
                mask = up((batch.support_mask[:, shot] == 1).float()[:, None], support3.shape[-1])
                guided.append(self._similarity(query4, self.backbone.stage(4, support3 * mask) * mask))
            x = self.trainable["reduce_support"](torch.cat([support3, support2], 1)) * mask
            area = mask.mean((2, 3), keepdim=True) * mask[0].numel() + 0.0005
            prototypes.append(x.mean((2, 3), keepdim=True) * mask[0].numel() / area)
        maps.append(torch.stack(guided).mean(0))
        query = self.trainable["reduce_query"](torch.cat([query3, query2], 1))
        return self._decode(query, torch.stack(prototypes).mean(0), torch.cat(maps, 1))

    @staticmethod
    def _middle(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        block2 = network.stage(2, network.stage(1, network.stage(0, image)))
        return block2, network.stage(3, block2)

    def _blocks(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        block2, block3 = self._middle(network, image)
        return block2, block3, network.stage(4, block3)

    @staticmethod
    def _similarity(query: Tensor, other: Tensor) -> Tensor:
        b, _, h, w = query.shape
        q, o = query.flatten(2), other.flatten(2).transpose(1, 2)  # [B, C, N], [B, N, C]
        norms = o.norm(dim=2, keepdim=True) @ q.norm(dim=1, keepdim=True)  # [B, N, N]
        best = (o @ q / (norms + 1e-7)).max(1).values  # [B, N]
        low, high = best.min(1, keepdim=True).values, best.max(1, keepdim=True).values
        return ((best - low) / (high - low + 1e-7)).view(b, 1, h, w)

    def _decode(self, query: Tensor, prototype: Tensor, maps: Tensor) -> tuple[Tensor, list[Tensor]]:
        fem, side = self.trainable["decoder"], query.shape[-1]
        levels, inner = [], []
        for i, scale in enumerate(fem.bins):
            cells = int(side * scale)
            sources = [F.adaptive_avg_pool2d(query, cells), prototype.expand(-1, -1, cells, cells), up(maps, cells)]
            x = F.relu(fem.merge[i](torch.cat(sources, 1)))
            if i:
                x = F.relu(fem.interact[i - 1](torch.cat([x, up(levels[-1], cells)], 1))) + x
            x = fem.refine[i](x) + x
            inner.append(fem.inner[i](x))
            levels.append(up(x, side))
        x = F.relu(fem.join(torch.cat(levels, 1)))
        return fem.classify(fem.smooth(x) + x), inner


class Shipped:
    """The method as it stands, `bf16` under autocast."""

    def __init__(self, method: QGNet, bf16: bool = False):
        self.method = method
        self.bf16 = bf16
        self.trainable = method.trainable

    def loss(self, batch: EpisodeBatch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss, _ = self.method.loss(batch, StepContext())
        self.method.after_step(StepContext())
        return loss


VERSIONS = {"plain": Plain, "float32": Shipped, "bf16": lambda method: Shipped(method, bf16=True)}


def check(method: QGNet, size: int) -> None:
    """Plain and shipped step give the same logits."""
    batch = episodes(1, size)
    with torch.no_grad():
        ours, _ = method.forward(batch)
        theirs, _ = Plain(copy.deepcopy(method)).forward(batch)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def seconds(versions: dict[str, Plain | Shipped], size: int, batch: int, steps: int) -> dict[str, float]:
    """Median CPU seconds of a step by version, after one to warm up."""
    optimizers = {name: torch.optim.SGD(v.trainable.parameters(), **SGD) for name, v in versions.items()}
    seen: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(steps + 1):
        drawn = episodes(batch, size)
        for name, version in versions.items():
            start = time.process_time()
            version.loss(drawn).backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            seen[name].append(time.process_time() - start)
    return {name: statistics.median(row[1:] or row) for name, row in seen.items()}


def peak_mib(name: str, size: int, batch: int, threads: int) -> float:
    """Peak resident memory of a process that takes a step of one version."""
    arguments = ["--alone", name, "--batches", str(batch), "--sizes", str(size), "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[225, 473])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=3, help="steps of every version, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", choices=sorted(VERSIONS), help="print the peak memory of one step of this one, MiB")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        seconds({args.alone: VERSIONS[args.alone](build())}, args.sizes[0], args.batches[0], steps=0)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    # First of all: the peak that a process reports is at least what the one that started it held.
    cases = [(size, batch) for size in args.sizes for batch in args.batches]
    memory = {case: {name: peak_mib(name, *case, args.threads) for name in VERSIONS} for case in cases}
    method, rows = build(), []
    print(f"{'px':>4} {'batch':>5}" + "".join(f"{f'{name}: CPU s':>17} {'ratio':>5} {'MiB':>5}" for name in VERSIONS))
    for (size, batch), peak in memory.items():
        check(method, size)
        versions = {name: version(copy.deepcopy(method)) for name, version in VERSIONS.items()}
        taken = seconds(versions, size, batch, args.steps)
        ratio = {name: time_ / taken["plain"] for name, time_ in taken.items()}
        rows.append({"size": size, "batch": batch, "cpu_s": taken, "ratio": ratio, "peak_mib": peak})
        cells = (f"{taken[name]:>17.2f} {ratio[name]:>5.2f} {peak[name]:>5.0f}" for name in VERSIONS)
        print(f"{size:>4} {batch:>5}" + "".join(cells), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
