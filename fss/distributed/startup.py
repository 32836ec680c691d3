"""Before step 1: do all ranks run the same job, and on what? One table by node, one verdict."""

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

PROBE = 2**22  # float32 numbers in the collective that is timed: 16 MiB, about what a bucket of gradients has
SCARCE = 10  # GiB free, below which the table says so


def check_ranks(context: DistributedContext, folder: Path, *, config: str, manifest: str) -> list[RenderableType]:
    """What to print of the ranks: nothing for one that is alone. Collective.

    folder: where the run will write. config, manifest: digests. Raises RunError, naming ranks, where these or the code
    differ; that as many ranks run as were promised was checked when they met.
    """
    # The code first: the identity of an evaluation, and so its configuration, holds it, too.
    for what, value in (("the code", code_version()), ("the configuration", config), ("the shard manifest", manifest)):
        context.check_same(what, value)
    if context.size == 1:
        return []
    rate = bandwidth(context)
    device = torch.cuda.get_device_name() if context.device.type == "cuda" else "cpu"
    ranks = context.gather_objects((platform.node(), device, free_gib(folder), rate))
    table = Table("node", "ranks", "device", "free for the run", "all-reduce", box=None)
    for (node, device), group in groupby(enumerate(ranks), key=lambda item: item[1][:2]):
        members = list(group)
        first, last = members[0][0], members[-1][0]
        free, slowest = (min(standing[column] for _, standing in members) for column in (2, 3))
        space = f"{free:.0f} GiB" + (" (scarce)" if free < SCARCE else "")
        table.add_row(node, f"{first}-{last}", f"{len(members)} x {device}", space, f"{slowest:.2f} GB/s")
    return [table, f"all {context.size} ranks agree: configuration {config}, shards {manifest}, code {code_version()}"]


def bandwidth(context: DistributedContext) -> float:
    """GB/s that the links of this rank carry in an all-reduce over all: 2 (n - 1) / n bytes for each byte reduced."""
    data = torch.ones(PROBE, device=context.device)
    context.collectives.all_reduce(data[:1])  # sets the connections up
    context.wait()
    began = time.perf_counter()
    context.collectives.all_reduce(data)[0].item()  # the number waits for the device
    return data.nbytes * 2 * (context.size - 1) / context.size / (time.perf_counter() - began) / 1e9


def free_gib(folder: Path) -> float:
    """Space left where `folder` is, or will be."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free / 2**30
