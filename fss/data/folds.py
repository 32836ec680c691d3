"""Folds of a packed set: its novel and base classes, by the conventions that fss.datasets declares.

Folds are counted from 0; classes have the ids of the manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fss.datasets import DATASETS, dataset_named
from fss.datasets.base import FoldQuery
from fss.errors import ConfigError
from shards.format import Manifest, ShardError


@dataclass(frozen=True)
class Fold:
    """The classes of one fold: none that is novel is trained on as a class."""

    scheme: str
    fold: int
    novel: tuple[int, ...]
    base: tuple[int, ...]
    rule: str = ""
    """Novel classes in words; with their number if it depends on the shots."""


def fold_of(scheme: str, fold: int, manifest: Manifest, novel: Sequence[str] = (), shots: int = 1) -> Fold:
    """Return the classes of fold `fold` of a packed set by convention `scheme`, ids ascending.

    novel: names or ids of the novel classes, for the scheme 'list' only. shots: K, which decides the classes of 'lvis'
    and 'paco'.
    Raises ConfigError for a scheme, a fold or names that do not exist, ShardError if the set is not the scheme's.
    """
    dataset = dataset_named(scheme)
    if not 0 <= fold < dataset.folds:
        remedy = f"give 0 to {dataset.folds - 1}" if dataset.folds > 1 else "it has only fold 0"
        raise ConfigError(f"episodes.fold is {fold}, outside of the scheme {scheme} ({dataset.rule}): {remedy}")
    if novel and scheme != "list":
        raise ConfigError(f"episodes.novel names classes but episodes.scheme is {scheme}: set the scheme to list")
    novel_ids, base_ids = dataset.split(FoldQuery(manifest, fold, novel, shots))
    if not novel_ids or (dataset.has_base_classes and not base_ids):
        raise ShardError(
            f"scheme {scheme}, fold {fold} leaves {len(novel_ids)} novel and {len(base_ids)} base classes of the "
            f"{len(manifest.classes)} in set {manifest.name}: choose another episodes.scheme or set"
        )
    rule = f"{dataset.rule}; at K = {shots} they are {len(novel_ids)}" if dataset.depends_on_shots else dataset.rule
    return Fold(scheme, fold, tuple(sorted(novel_ids)), tuple(sorted(base_ids)), rule)


def training_fold(scheme: str, fold: int, manifest: Manifest, novel: Sequence[str] = ()) -> Fold:
    """Return the classes of a fold to train on; see `fold_of`. Raises ConfigError if the scheme has no base classes."""
    if not dataset_named(scheme).has_base_classes:
        choices = ", ".join(name for name, dataset in DATASETS.items() if dataset.has_base_classes)
        raise ConfigError(
            f"episodes.scheme is {scheme}, which has no base classes and is for evaluation alone: choose {choices}"
        )
    return fold_of(scheme, fold, manifest, novel)
