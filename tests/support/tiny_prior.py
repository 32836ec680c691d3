"""A prior extractor small enough for tests, and batches for it."""

from dataclasses import replace

import torch
from torch import nn

from fss.data.batch import ViewBatch
from fss.methods.base import StepContext
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from fss.nn.resnet import Encoder

SMALL = PriorConfig(dim=8, queue=40, local_queue=24, momentum=0.9, local="patch", regions=3)
REGION = replace(SMALL, local="region")


class TinyEncoder(Encoder):
    """Three layers: stride 4, with or without batch norm."""

    def __init__(self, norm: bool = True, dim: int = 8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(6, 10, 3, stride=2, padding=1),
            nn.BatchNorm2d(10) if norm else nn.Identity(),
            nn.ReLU(),
        )
        self.fc = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, dim))

    def features(self, image):
        return self.body(image)

    def project(self, feature):
        return self.fc(feature)


class Pixels(Encoder):
    """An identity encoder: the embedding of an image is its 12 values."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Identity()
        self.unused = nn.Parameter(torch.zeros(1))

    def features(self, image):
        return image.flatten(1)[:, :, None, None].float()

    def project(self, feature):
        return feature


def build(config=SMALL, encoder=TinyEncoder, **options) -> PriorExtractor:
    torch.manual_seed(0)
    return PriorExtractor(config, encoder=encoder, **options)


def views(n: int, *, size: int = 16, regions: int = 3, seed: int = 0) -> ViewBatch:
    g = torch.Generator().manual_seed(seed)
    cells = size // 4

    def pictures(side: int) -> torch.Tensor:
        return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=g)

    def areas() -> torch.Tensor:
        return torch.rand(n, regions, cells * cells, generator=g).softmax(-1).view(n, regions, cells, cells)

    return ViewBatch(
        query=pictures(size),
        key=pictures(size),
        patch_query=pictures(8),
        patch_key=pictures(8),
        region_query=areas(),
        region_key=areas(),
        region_weight=torch.tensor([1.0, 0.5, 0.5]).repeat(n, 1) if regions == 3 else torch.ones(n, regions),
        image=torch.arange(n) + 100 * seed,
        keys=[f"{seed}-{i}" for i in range(n)],
        replaced=[],
    )


def part(batch: ViewBatch, rows: slice) -> ViewBatch:
    piece = batch.map(lambda x: x[rows])
    piece.keys = batch.keys[rows]
    return piece


def freeze_norm(method: PriorExtractor) -> None:
    """Batch norm as in evaluation: statistics no longer depend on who shares the batch."""
    method.trainable.eval()
    method.non_trainable.eval()


def train(method: PriorExtractor, batches: list[ViewBatch], collectives, *, accumulate: int = 1) -> dict:
    """Plain SGD with gradients averaged over ranks; returns what must not depend on the number of ranks."""
    gradients, losses = [], []
    parameters = list(method.trainable.parameters())
    for step, batch in enumerate(batches):
        n = len(batch) // (collectives.world_size * accumulate)
        for micro in range(accumulate):  # the micro-batches of a step, each cut over the ranks
            start = (micro * collectives.world_size + collectives.rank) * n
            loss, _ = method.loss(part(batch, slice(start, start + n)), StepContext(collectives, step))
            (loss / accumulate).backward()
            losses.append(collectives.all_reduce(loss.detach()) / collectives.world_size)
        with torch.no_grad():
            for parameter in parameters:
                parameter.grad = collectives.all_reduce(parameter.grad) / collectives.world_size
                parameter -= 0.05 * parameter.grad
        gradients.append([p.grad for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        method.after_step(StepContext(collectives))
    return {"gradients": gradients, "losses": losses, "state": method.non_trainable.state_dict()}


def assert_same(ours: dict, theirs: dict, *, running: bool = True) -> None:
    for a, b in zip(ours["gradients"], theirs["gradients"], strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=2e-6, rtol=1e-4)
    for name, value in ours["state"].items():
        if running or ("running" not in name and "tracked" not in name):
            torch.testing.assert_close(value, theirs["state"][name], atol=2e-6, rtol=1e-4, msg=name)
