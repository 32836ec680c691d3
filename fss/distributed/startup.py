"""The check before step 1: that all ranks run the same job, and one table of the nodes that they run on."""

import platform
import shutil
import time
from itertools import groupby
from pathlib import Path

import torch
from rich.console import RenderableType
from rich.table import Table

from fss.distributed.context import DistributedContext
from fss.provenance import code_version

PROBE = 2**22  # float32 numbers in the collective that is timed: 16 MiB, about the size of a bucket of gradients
SCARCE = 10  # GiB of free space below which the table has a remark


def check_ranks(
    context: DistributedContext, folder: Path, *, config: str, manifest: str, workers: int
) -> list[RenderableType]:
    """Compare the ranks; returns what to print about them, nothing in a job of one rank. Collective.

    folder: where the run will write. config, manifest: digests. workers: data workers of this rank. Raises RunError,
    naming ranks, if the digests or the code differ. The number of ranks was checked when they connected.
    """
    # The code first: the identity of an evaluation, and so its configuration, contains it too.
    for subject, value in (
        ("the code", code_version()),
        ("the configuration", config),
        ("the shard manifest", manifest),
    ):
        context.check_same(subject, value)
    if context.world_size == 1:
        return []
    rate = bandwidth(context)
    device = torch.cuda.get_device_name() if context.device.type == "cuda" else "cpu"
    ranks = context.gather_objects((platform.node(), device, free_gib(folder), rate, workers))
    table = Table("node", "ranks", "device", "data workers", "free for the run", "all-reduce", box=None)
    for (node, device), group in groupby(enumerate(ranks), key=lambda item: item[1][:2]):
        members = list(group)
        first, last = members[0][0], members[-1][0]
        free = min(row[2] for _, row in members)
        slowest = min(row[3] for _, row in members)
        space = f"{free:.0f} GiB" + (" (scarce)" if free < SCARCE else "")
        supply = f"{len(members)} x {min(row[4] for _, row in members)}"
        table.add_row(node, f"{first}-{last}", f"{len(members)} x {device}", supply, space, f"{slowest:.2f} GB/s")
    return [
        table,
        f"equal on all {context.world_size} ranks: configuration {config}, shards {manifest}, code {code_version()}",
    ]


def bandwidth(context: DistributedContext) -> float:
    """GB/s over the links of this rank in an all-reduce over all: 2 (n - 1) / n bytes for each byte reduced."""
    data = torch.ones(PROBE, device=context.device)
    context.collectives.all_reduce(data[:1])  # sets the connections up
    context.barrier()
    start = time.perf_counter()
    context.collectives.all_reduce(data)[0].item()  # reading the number waits for the device
    seconds = time.perf_counter() - start
    return data.nbytes * 2 * (context.world_size - 1) / context.world_size / seconds / 1e9


def free_gib(folder: Path) -> float:
    """Free space, in GiB, of the file system where `folder` is, or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free / 2**30
