"""Opening of the packed set that a job names."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fss.data.dataset import DataConfig
from shards.read import ShardSet
from shards.synthetic import embed

EMBEDDED_IMAGES = 800


def open_shard_set(config: DataConfig, on_main: Callable[[Callable[[], Any]], Any]) -> ShardSet:
    """Open the packed set that `config` names, or the embedded set, which is packed at its first use.

    on_main: runs an action on rank 0 while the other ranks wait, such as `DistributedContext.on_main`. Collective.
    Raises ShardError if the set cannot be opened.
    """
    if config.shards:
        return ShardSet(config.shards, cache=config.cache)
    folder = Path(os.environ.get("FSS_DATA", "data")) / "synthetic"
    on_main(lambda: embed(folder, images=EMBEDDED_IMAGES, processes=min(os.cpu_count() or 1, 8)))
    return ShardSet(folder)
