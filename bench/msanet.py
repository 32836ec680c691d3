"""The cost of MSANet, as a ratio to the same network in the shape of the reference (bench/plain_msanet.py).

    python bench/msanet.py [--cases 473:1:0.25 473:5:0.25 473:1:1.0] [--repeats 3] [--threads 1] [--json FILE]

A case is size:shots:share of the image that the object covers. ResNet-50, 15 base classes, batch 1, float32, the same
random weights for both; the program checks that both give the same scores. They take turns, and the median CPU time of
each counts: of a forward pass without gradients, and of a training step, of which the plain one also computes the base
learner's constant loss, as published. Memory is what a step adds to a process of its own at its peak. Then come the
stages of a forward pass beside those of the reference implementation on another machine, and a step at 641 px with
five shots.
"""

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from plain_msanet import PlainMSANet, Seen, see
from torch import Tensor, nn
from torch.nn import functional as F

from fss.data.batch import EpisodeBatch
from fss.methods.base import StepContext
from fss.methods.msanet.config import MSANetConfig
from fss.methods.msanet.method import MSANet
from fss.nn.ensemble import cosine_gram, psi
from fss.nn.exports import ExportHeader, save_export
from fss.nn.multisim import class_share, compared_layers, layer_similarity
from fss.nn.pspnet import PSPNet
from fss.nn.region import downsample_mask, guided_region_map
from fss.nn.resnet import PointwiseConv2d

SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
CLASSES = {str(number): f"class {number}" for number in range(1, 16)}
PUBLISHED = {"backbone": 1.06, "multi-similarity": 0.80, "base learner": 0.30, "prior mask": 0.27, "Gram": 0.03}
"""Seconds of a forward pass of the reference implementation: 473 px, 1 shot, a quarter of the image, two threads."""


def build() -> MSANet:
    """The paper's network with random weights, without dropout, which would make the two draw differently."""
    torch.manual_seed(0)
    header = ExportHeader(method="base", backbone="resnet50", stem="torchvision", classes=CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        save_export(path, PSPNet("resnet50", "torchvision", len(CLASSES)).state_dict(), header)
        off = dict.fromkeys(("reduction_dropout", "classifier_dropout", "attention_dropout"), 0.0)
        return MSANet(MSANetConfig(base_weights=str(path), **off))


class Shipped:
    """The method as it stands."""

    def __init__(self, method: MSANet):
        self.method = method
        self.trainable = method.trainable

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        return self.method.forward(batch)

    def loss(self, batch: EpisodeBatch) -> Tensor:
        return self.method.loss(batch, StepContext())[0]


class Plain:
    """The published shape, with the networks of a method, which are made plain for it."""

    def __init__(self, method: MSANet):
        self.trainable, self.frozen = method.trainable, method.non_trainable
        for module in (self.trainable, self.frozen):
            module.to(memory_format=torch.contiguous_format)
            for layer in module.modules():
                if type(layer) is PointwiseConv2d:
                    layer.__class__ = nn.Conv2d
        self.classes = torch.tensor(list(method.classes))
        self.seconds: dict[str, float] = defaultdict(float)
        self.plain = PlainMSANet(
            self.trainable["learner"],
            self.trainable["reduce_query"],
            self.trainable["reduce_support"],
            self.trainable["attention"],
            self.stage,
        )

    @contextmanager
    def stage(self, name: str):
        began = time.process_time()
        yield
        self.seconds[name] += time.process_time() - began

    def base(self, block4: Tensor) -> Tensor:
        """The base learner's head, its pyramid concatenated."""
        head = self.frozen["base"]
        return head.classify(head.dropout(F.relu(head.norm(head.reduce(head.ppm(block4))))))

    def see(self, image: Tensor) -> Seen:
        with torch.no_grad(), self.stage("backbone"):
            return see(self.frozen["backbone"], self.frozen["normalize"](image))

    def forward(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        scores, meta, _ = self._all(batch)
        return scores, meta

    def _all(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor, Tensor]:
        query = self.see(batch.query)
        supports = [self.see(batch.support[:, shot]) for shot in range(batch.support.shape[1])]
        with torch.no_grad(), self.stage("base learner"):
            base = self.base(query.block4)
        excluded = batch.class_id[:, None] == self.classes
        return *self.plain.forward(query, supports, batch.support_mask, base, excluded), base

    def loss(self, batch: EpisodeBatch) -> Tensor:
        mask, size = batch.query_mask.long(), batch.query_mask.shape[1:]
        outputs = [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in self._all(batch)]
        return sum(F.cross_entropy(x, mask, ignore_index=255) for x in outputs)


VERSIONS: dict[str, Callable] = {"plain": Plain, "shipped": Shipped}


def episodes(size: int, shots: int, share: float) -> EpisodeBatch:
    """Noise, with a square object."""
    image = torch.randint(0, 256, (1, 1 + shots, 3, size, size), dtype=torch.uint8)
    mask = torch.zeros(1, 1 + shots, size, size, dtype=torch.uint8)
    margin = round(size * (1 - share**0.5) / 2)
    mask[..., margin : size - margin, margin : size - margin] = 1
    return EpisodeBatch(
        query=image[:, 0],
        query_mask=mask[:, 0],
        support=image[:, 1:],
        support_mask=mask[:, 1:],
        class_id=torch.ones(1, dtype=torch.int64),
        keys=["made up"],
        replaced=[],
    )


def median(action: Callable, versions: dict[str, Plain | Shipped], repeats: int) -> dict[str, float]:
    """Median CPU seconds of `action(version)`, in turns, after one to warm up."""
    seen: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats + 1):
        for name, version in versions.items():
            began = time.process_time()
            action(version)
            seen[name].append(time.process_time() - began)
    return {name: statistics.median(row[1:]) for name, row in seen.items()}


def step(version: Plain | Shipped, batch: EpisodeBatch) -> None:
    version.loss(batch).backward()
    torch.optim.SGD(version.trainable.parameters(), **SGD).step()
    version.trainable.zero_grad()


def forward(version: Plain | Shipped, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return version.forward(batch)


def extra_mib(name: str, case: str, threads: int) -> float:
    """The rise of the peak of the resident memory in a step of one version, in a process of its own, MiB."""
    arguments = ["--alone", name, "--cases", case, "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout)


def alone(name: str, batch: EpisodeBatch) -> float:
    version = VERSIONS[name](build())
    before = psutil.Process().memory_info().rss
    step(version, batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / (1 << 20)


@torch.no_grad()
def stages(method: MSANet, batch: EpisodeBatch, repeats: int) -> dict[str, float]:
    """Median CPU seconds of the parts of the shipped forward pass, by the functions that it calls."""
    backbone, shots, b = method.non_trainable["backbone"], batch.support.shape[1], len(batch)
    images = method.non_trainable["normalize"](torch.cat([batch.query, batch.support.flatten(0, 1)]))
    masks = batch.support_mask.flatten(0, 1)
    seen = [(block, list(layers)) for _, block, layers in compared_layers(backbone, images)]
    (block2, _), (block3, _), (block4, _) = seen
    layers, small = [layer for _, some in seen for layer in some], downsample_mask(masks, block3.shape[2:])
    share = class_share(masks, "resnet50")

    def prior() -> None:
        for shot in range(shots):
            guided_region_map(block4[:b], block4[b + shot : b + shot + 1], small[shot : shot + 1])

    def gram() -> None:
        grams = cosine_gram(block2)
        [psi(grams[:b], grams[b + shot : b + shot + 1]) for shot in range(shots)]

    parts = {
        "backbone": lambda: [len(layers) for _, _, layers in compared_layers(backbone, images)],
        "multi-similarity": lambda: [layer_similarity(layer, share, "mask") for layer in layers],
        "base learner": lambda: method.non_trainable["base"](block4[:b]),
        "prior mask": prior,
        "Gram": gram,
    }
    found = {}
    for name, part in parts.items():
        found |= median(lambda _, part=part: part(), {name: None}, repeats)
    return found


def parsed(case: str) -> tuple[int, int, float]:
    size, shots, share = case.split(":")
    return int(size), int(shots), float(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["473:1:0.25", "473:5:0.25", "473:1:1.0"])
    parser.add_argument("--large", default="641:5:0.25", help="a case that the shipped method alone is run on")
    parser.add_argument("--repeats", type=int, default=3, help="of everything, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", choices=sorted(VERSIONS), help="print what one step of this one adds, MiB")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        print(alone(args.alone, episodes(*parsed(args.cases[0]))))
        return
    # First of all: the peak that a process reports is at least what the one that started it held.
    memory = {case: {name: extra_mib(name, case, args.threads) for name in VERSIONS} for case in args.cases}
    large = extra_mib("shipped", args.large, args.threads)
    method = build()
    versions = {name: version(copy.deepcopy(method)) for name, version in VERSIONS.items()}
    figures: dict[str, dict] = {}
    heads = ("forward: s", "step: s", "extra MiB")
    print(" " * 21 + "".join(f"{head:>12} {'ratio':>6}" for head in heads))
    for case, extra in memory.items():
        batch = episodes(*parsed(case))
        for ours, theirs in zip(forward(versions["shipped"], batch), forward(versions["plain"], batch), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
        seconds = {
            "forward": median(lambda v, batch=batch: forward(v, batch), versions, args.repeats),
            "step": median(lambda v, batch=batch: step(v, batch), versions, args.repeats),
            "extra": extra,
        }
        figures[case] = seconds
        for name in VERSIONS:
            cells = "".join(f"{row[name]:>12.2f} {row[name] / row['plain']:>6.2f}" for row in seconds.values())
            print(f"{case:>12} {name:>8}{cells}", flush=True)
    print(f"{args.large:>12}  shipped: a step adds {large:.0f} MiB")
    batch = episodes(*parsed(args.cases[0]))
    versions["plain"].seconds.clear()
    for _ in range(args.repeats):
        forward(versions["plain"], batch)
    plain = {name: seconds / args.repeats for name, seconds in versions["plain"].seconds.items()}
    shipped = stages(method, batch, args.repeats)
    print(f"\n{'stage, CPU s':>18} {'plain':>7} {'shipped':>8} {'ratio':>6}   published, wall s on 2 threads elsewhere")
    for name, published in PUBLISHED.items():
        print(f"{name:>18} {plain[name]:>7.2f} {shipped[name]:>8.2f} {shipped[name] / plain[name]:>6.2f}   {published}")
    if args.json:
        stage_rows = {"plain": plain, "shipped": shipped}
        found = {"threads": args.threads, "cases": figures, "large_mib": large, "stages": stage_rows}
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
