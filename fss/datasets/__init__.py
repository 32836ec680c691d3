"""The registry of data sets: classes, folds, protocol values, test sizes and packer, declared once a set.

A new data set is a reader in shards/sources and a file here whose `DataSet` is added to DATASETS. This package may
import shards and fss.errors only.
"""

from typing import TYPE_CHECKING, Literal

from fss.datasets.base import DataSet
from fss.datasets.coco import COCO, COCO_CONTIGUOUS
from fss.datasets.cross_domain import DEEPGLOBE, ISIC
from fss.datasets.fss1000 import FSS
from fss.datasets.isaid import ISAID
from fss.datasets.lvis import LVIS
from fss.datasets.own import INTERLEAVED, LIST
from fss.datasets.paco import PACO
from fss.datasets.pascal import PASCAL
from fss.datasets.pascal_part import PASCAL_PART
from fss.errors import ConfigError

__all__ = ["DATASETS", "DataSet", "SchemeName", "dataset_named"]

DATASETS = {
    dataset.name: dataset
    for dataset in (
        PASCAL,
        COCO,
        COCO_CONTIGUOUS,
        FSS,
        LVIS,
        PACO,
        PASCAL_PART,
        DEEPGLOBE,
        ISIC,
        ISAID,
        INTERLEAVED,
        LIST,
    )
}
"""Name that users give as episodes.scheme -> data set."""

if TYPE_CHECKING:
    SchemeName = str
else:
    SchemeName = Literal[tuple(DATASETS)]  # the command line takes and lists only these


def dataset_named(scheme: str) -> DataSet:
    """Return the data set that users call `scheme`. Raises ConfigError if there is none."""
    if scheme not in DATASETS:
        raise ConfigError(f"episodes.scheme is {scheme}, which is not known: choose one of {', '.join(DATASETS)}")
    return DATASETS[scheme]
