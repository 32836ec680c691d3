"""The cost of a pretraining step, as a ratio to the plain MoCo of plain_moco.py, in CPU time of this process.

    python bench/step.py [--backbones resnet50 resnet18] [--steps 5] [--threads 1] [--json FILE]

224 px, batch 8, K = 65536. The versions take turns, step by step, and the median of each counts, so that
other load on the machine meets all of them alike. The stages of both are printed, those of the ResNet-50 beside what
the official code took on another machine. The targets are those of the ResNet-50, too.

Like the plain one, the shipped versions take batch statistics over all 8 images, as every rank of a larger job does
(bn_split 1); 'split' is float32 with the default of a lone process, which cuts its batch into two groups.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torchvision
from plain_moco import PlainMoCo
from torch import Tensor

from fss.data.batch import ViewBatch
from fss.methods.base import StepContext
from fss.methods.prior import method as prior
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from fss.nn.norm import Normalize
from fss.nn.resnet import ENCODERS, mlp_head

BATCH = 8
QUEUE = 65536
SGD = {"lr": 0.03 * BATCH / 256, "momentum": 0.9, "weight_decay": 1e-4}

OFFICIAL = {
    "q forward": 815,
    "k forward": 807,
    "backward": 1304,
    "momentum update": 42.8,
    "optimizer": 41.3,
    "logits, loss": 19.7,
    "shuffle, enqueue": 5.0,
    "total": 3069,
}
"""CPU ms of this step by facebookresearch/moco, gloo, one process: one thread of an AMD EPYC with AVX-512."""

TARGETS = {"float32": 0.82, "bf16": 0.45}
"""At most this share of the plain step's time; bf16 on a CPU with avx512_bf16."""
LOCAL_TARGET = 0.35
"""At most this share on top for local contrast of patches."""


class Stages:
    """CPU milliseconds by stage name, summed within a step."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str):
        start = time.process_time()
        yield
        self.ms[name] += 1000 * (time.process_time() - start)

    def timed(self, name: str, function):
        """`function`, counted as stage `name`."""

        def wrapper(*args, **kwargs):
            with self(name):
                return function(*args, **kwargs)

        return wrapper

    def take(self) -> dict[str, float]:
        """The stages since the last call."""
        ms, self.ms = dict(self.ms), defaultdict(float)
        return ms


class Plain:
    """The reference; it gets its images as floats, the shipped step converts them itself."""

    def __init__(self, backbone: str) -> None:
        self.stages = Stages()
        encoder = torchvision.models.get_model(backbone)
        encoder.fc = mlp_head(encoder.fc.in_features, 128)
        self.model = PlainMoCo(encoder, dim=128, queue=QUEUE, momentum=0.999, temperature=0.2, stage=self.stages)
        self.optimizer = torch.optim.SGD(self.model.encoder_q.parameters(), **SGD)
        self.normalize = Normalize()

    def prepare(self, batch: ViewBatch) -> tuple[Tensor, Tensor]:
        return self.normalize(batch.query), self.normalize(batch.key)

    def step(self, views: tuple[Tensor, Tensor]) -> None:
        loss = self.model(*views)
        with self.stages("backward"):
            loss.backward()
        with self.stages("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()


class Shipped:
    """The method as the training loop runs it."""

    def __init__(self, backbone: str, *, local: str = "none", bf16: bool = False, split: int = 1) -> None:
        self.stages = Stages()
        self.bf16 = bf16
        self.method = PriorExtractor(
            PriorConfig(backbone=backbone, queue=QUEUE, local_queue=QUEUE, local=local, bn_split=split)
        )
        self.optimizer = torch.optim.SGD(self.method.trainable.parameters(), fused=True, **SGD)
        self.count = 0
        embed = self.method._embed
        self.method._embed = lambda tower, *rest: self.stages.timed(
            "q forward" if tower is self.method._query else "k forward", embed
        )(tower, *rest)
        self.method._contrast = self.stages.timed("logits, loss", self.method._contrast)

    def prepare(self, batch: ViewBatch) -> ViewBatch:
        return batch

    def step(self, batch: ViewBatch) -> None:
        precision = torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()
        with precision:
            loss, _ = self.method.loss(batch, StepContext(step=self.count))
        with self.stages("backward"):
            loss.backward()
        with self.stages("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        update = prior.momentum_update
        prior.momentum_update = self.stages.timed("momentum update", update)
        try:
            self.method.after_step(StepContext())
        finally:
            prior.momentum_update = update
        self.count += 1


def random_batch() -> ViewBatch:
    """Noise: no stage's time depends on what is in the pictures."""
    views = torch.randint(0, 256, (2, BATCH, 3, 224, 224), dtype=torch.uint8)
    patches = torch.randint(0, 256, (2, BATCH, 3, 96, 96), dtype=torch.uint8)
    return ViewBatch(
        query=views[0],
        key=views[1],
        patch_query=patches[0],
        patch_key=patches[1],
        image=torch.arange(BATCH),
        keys=[str(i) for i in range(BATCH)],
        replaced=[],
    )


def measure(backbone: str, steps: int) -> dict[str, dict[str, float]]:
    """Median CPU ms by version and stage ('total' among them) of `steps` steps each, after one to warm up."""
    versions = {
        "plain": Plain(backbone),
        "float32": Shipped(backbone),
        "bf16": Shipped(backbone, bf16=True),
        "split": Shipped(backbone, split=2),
        "float32 + patches": Shipped(backbone, local="patch"),
        "bf16 + patches": Shipped(backbone, local="patch", bf16=True),
    }
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for _ in range(steps + 1):
        batch = random_batch()
        for name, version in versions.items():
            ready = version.prepare(batch)
            start = time.process_time()
            version.step(ready)
            total = 1000 * (time.process_time() - start)
            seen[name].append(version.stages.take() | {"total": total})
    return {
        name: {stage: statistics.median(row[stage] for row in rows[1:]) for stage in rows[0]}
        for name, rows in seen.items()
    }


def show(backbone: str, ms: dict[str, dict[str, float]]) -> dict[str, float]:
    """Print the table and the ratios; returns the ratios."""
    reference = backbone == "resnet50"
    columns = {"official, elsewhere": OFFICIAL} | ms if reference else ms
    print(f"{f'{backbone}, CPU ms':<20}" + "".join(f"{name:>20}" for name in columns))
    for stage in OFFICIAL:
        cells = "".join(f"{row[stage]:20.1f}" if stage in row else f"{'-':>20}" for row in columns.values())
        print(f"{stage:<20}{cells}")
    total = {name: row["total"] for name, row in ms.items()}
    ratios = {name: total[name] / total["plain"] for name in total if name != "plain"}
    print()
    for name, target in TARGETS.items():
        print(f"{name:<10} {ratios[name]:.3f} of the plain step" + f" (at most {target})" * reference)
    for name in TARGETS:
        ratios[f"{name}, local adds"] = total[f"{name} + patches"] / total[name] - 1
        limit = f" (at most {LOCAL_TARGET:.0%})" * reference
        print(f"{name:<10} patches at 96 px add {ratios[f'{name}, local adds']:.1%}{limit}")
    ratios["split adds"] = total["split"] / total["float32"] - 1
    print(f"{'float32':<10} statistics over two groups on a lone process add {ratios['split adds']:.1%}\n", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps of every version, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backbones", nargs="+", choices=sorted(ENCODERS), default=["resnet50", "resnet18"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    found = {}
    for backbone in args.backbones:
        ms = measure(backbone, args.steps)
        found[backbone] = {"cpu_ms": ms, "ratios": show(backbone, ms)}
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "backbones": found}, indent=1))


if __name__ == "__main__":
    main()
