"""The number of data workers of a rank, if the configuration leaves it open."""

import os

from fss.data.dataset import DataConfig
from shards.workers import cores

MOST = 16  # each worker keeps `data.prefetch` batches in memory


def worker_count(config: DataConfig, threads: int) -> int:
    """Return `data.workers`, or the share of a rank in the cores of its node, less those that the rank itself needs.

    The cores are those that this process may use, shared by as many ranks as the launcher started on this node. At
    least 1 and at most `MOST`. threads: cores on which the rank itself computes, 1 if it has a GPU.
    """
    if config.workers is not None:
        return config.workers
    return min(MOST, max(1, cores() // ranks_of_node() - threads))


def ranks_of_node() -> int:
    """Return the number of ranks that the launcher started on this node, 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
