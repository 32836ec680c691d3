"""The kNN probe: how well the frozen features of a method separate classes of which it never saw a label."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fss.collectives import Collectives
from fss.data.object_crops import ObjectCrops
from fss.errors import ConfigError, at_least
from fss.methods.base import ViewMethod
from fss.nn.knn import knn_predict
from shards.format import ShardError
from shards.read import LostShardError, ShardSet


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """kNN classification of labelled object crops by the frozen features, as a measure of their quality."""

    shards: str | None = None
    """Labelled shards to probe on; null: the training shards, if they carry labels."""
    every: int = 0
    """Optimizer steps between probes; 0: only before the first step and after the last."""
    k: int = 20
    """Neighbours that vote."""
    size: int = 128
    """Side of a crop, pixels."""
    limit: int = 4000
    """Maximum number of samples, evenly spread over the set; half of them vote, half are classified."""

    def __post_init__(self) -> None:
        at_least("probe", self, every=0, k=1, size=32, limit=2)


def probe_crops(config: ProbeConfig, training: ShardSet) -> ObjectCrops | None:
    """The crops to probe on; None if no other shards are named and the training shards have no usable labels.

    Raises ConfigError if the named shards cannot be probed on, ShardError if they cannot be opened.
    """
    shards = training if config.shards is None else ShardSet(config.shards)
    crops = ObjectCrops(shards, size=config.size, limit=config.limit)
    if crops.usable:
        return crops
    if config.shards is None:
        return None
    raise ConfigError(
        f"probe.shards {config.shards} gives {len(crops)} labelled crops of classes with two samples or more, not "
        "enough for two halves: name shards packed with masks, raise probe.limit, or leave probe.shards out"
    )


def probe(
    method: ViewMethod,
    crops: ObjectCrops,
    collectives: Collectives,
    device: torch.device,
    *,
    batch: int = 64,
    k: int = 20,
    report_progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Top-1 accuracy of a weighted kNN over one half of the crops on the other. Collective; equal on all ranks.

    report_progress: called after every batch.

    Returns:
        knn/top1: share of the held-out crops whose class is predicted.
        knn/chance_level: score of the best constant answer, the share of the commonest held-out class.
        knn/images: crops used, both halves.
        knn/unreadable: crops left out because their sample could not be read.
    """
    features, readable = embed(method, crops, collectives, device, batch=batch, report_progress=report_progress)
    labels = torch.tensor([row.label for row in crops.rows], device=device)  # [N]
    held_out = torch.tensor([row.held_out for row in crops.rows], device=device)  # [N]
    voters, asked = readable & ~held_out, (readable & held_out).nonzero()[:, 0]
    classes = int(labels.max()) + 1
    mine = asked[collectives.rank :: collectives.world_size]
    predicted = knn_predict(features[voters], labels[voters], features[mine], k=k, classes=classes)
    right = collectives.all_reduce((predicted == labels[mine]).sum())
    return {
        "knn/top1": right.item() / max(len(asked), 1),
        "knn/chance_level": labels[asked].bincount().max().item() / len(asked) if len(asked) else 0.0,
        "knn/images": float(readable.sum()),
        "knn/unreadable": float((~readable).sum()),
    }


@torch.no_grad()
def embed(
    method: ViewMethod,
    crops: ObjectCrops,
    collectives: Collectives,
    device: torch.device,
    *,
    batch: int = 64,
    report_progress: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Compute `method.embed` of all crops. Collective; equal on all ranks.

    Crops are cut into the same batches whatever the number of ranks, which take them in turn: features differ in the
    last bits between batch sizes, and a probe must not depend on the number of ranks.

    Returns:
        (features [N, D], readable [N] bool); rows of unreadable crops are arbitrary.
    """
    rounds = -(-len(crops) // (batch * collectives.world_size))
    starts = [(turn * collectives.world_size + collectives.rank) * batch for turn in range(rounds)]
    features, readable = [], []
    with ThreadPoolExecutor() as threads:  # decoding releases the GIL, and runs ahead of the encoder
        blocks = [[threads.submit(_load, crops, i) for i in range(start, start + batch)] for start in starts]
        for block in blocks:
            loaded = [future.result() for future in block]
            images = torch.from_numpy(np.stack([image for image, _ in loaded])).permute(0, 3, 1, 2)  # [B, 3, S, S]
            features.append(method.embed(images.to(device).contiguous()))
            readable += [good for _, good in loaded]
            block.clear()  # frees the pixels
            report_progress()
    gathered = collectives.all_gather(torch.cat(features))  # [world * rounds * batch, D]
    flags = collectives.all_gather(torch.tensor(readable, dtype=torch.uint8, device=device))

    def in_order(x: Tensor) -> Tensor:  # rank-major -> the order of the crops, without the padding
        return x.unflatten(0, (collectives.world_size, rounds, batch)).transpose(0, 1).flatten(0, 2)[: len(crops)]

    return in_order(gathered), in_order(flags).bool()


def _load(crops: ObjectCrops, index: int) -> tuple[np.ndarray, bool]:
    """Load a crop, and whether it is valid; black if it cannot be read, or is padding of the last batch."""
    if index < len(crops):
        try:
            return crops.load(index), True
        except LostShardError:  # the remaining crops would be another set
            raise
        except ShardError:
            pass
    return np.zeros((crops.size, crops.size, 3), np.uint8), False
