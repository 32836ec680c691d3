"""Folds: which classes of a set are novel and which are base, by the conventions of the literature.

A convention is one entry of SCHEMES. Folds are counted from 0, classes have the ids of the manifest.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from fss.errors import ConfigError
from shards.format import Manifest, ShardError

SchemeName = Literal["pascal", "coco", "coco_contiguous", "fss", "interleaved", "list"]
Classes = dict[int, str]
Split = tuple[list[int], list[int]]
"""Novel and base class ids."""

FSS1000_SPLIT = Path(__file__).with_name("fss1000_split.txt")
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)    # fmt: skip
VOC_SYNONYMS = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}
COCO_CLASSES = 80
COCO_ENDS = ("person", "toothbrush")    # the first and the last of the official order


@dataclass(frozen=True)
class Fold:
    """The classes of one fold: none that is novel is trained on as a class."""

    scheme: str
    fold: int
    novel: tuple[int, ...]
    base: tuple[int, ...]


@dataclass(frozen=True)
class Scheme:
    """A convention for cutting the classes of a data set into novel and base."""

    folds: int
    rule: str
    """Which classes of fold i are novel, for people."""
    split: Callable[[Classes, int, Sequence[str]], Split]
    """(classes, fold, names that the user gave) -> novel and base ids. Raises ShardError where the set is another."""


def fold_of(scheme: str, fold: int, manifest: Manifest, novel: Sequence[str] = ()) -> Fold:
    """The classes of fold `fold` of a packed set by convention `scheme`, ids ascending.

    novel: names or ids of the novel classes, for the scheme 'list' only.
    Raises ConfigError for a fold or names that the scheme does not have, ShardError where the set is not the scheme's.
    """
    how = SCHEMES[scheme]
    if not 0 <= fold < how.folds:
        wanted = f"give 0 to {how.folds - 1}" if how.folds > 1 else "it has only fold 0"
        raise ConfigError(f"episodes.fold is {fold}, outside of the scheme {scheme} ({how.rule}): {wanted}")
    if novel and scheme != "list":
        raise ConfigError(f"episodes.novel names classes but episodes.scheme is {scheme}: set the scheme to list")
    novel_ids, base_ids = how.split(manifest.classes, fold, novel)
    if not novel_ids or not base_ids:
        raise ShardError(
            f"scheme {scheme}, fold {fold} leaves {len(novel_ids)} novel and {len(base_ids)} base classes of the "
            f"{len(manifest.classes)} in set {manifest.name}: choose another episodes.scheme or set"
        )
    return Fold(scheme, fold, tuple(sorted(novel_ids)), tuple(sorted(base_ids)))


def _pascal(classes: Classes, fold: int, _: Sequence[str]) -> Split:
    ids = {_voc_name(name): class_id for class_id, name in classes.items()}
    if set(ids) != set(VOC_CLASSES):
        missing = next((name for name in VOC_CLASSES if name not in ids), None)
        detail = f"no {missing}" if missing else f"{len(classes)} of them"
        raise _another_set("pascal", f"the 20 classes of PASCAL VOC, this set has {detail}")
    return _cut([ids[name] for name in VOC_CLASSES], slice(5 * fold, 5 * fold + 5))


def _coco(name: str, novel: Callable[[int], slice]) -> Callable[[Classes, int, Sequence[str]], Split]:
    def split(classes: Classes, fold: int, _: Sequence[str]) -> Split:
        ids = sorted(classes)
        if len(ids) != COCO_CLASSES:
            raise _another_set(name, f"the 80 classes of COCO, this set has {len(ids)}")
        if (ends := (classes[ids[0]], classes[ids[-1]])) != COCO_ENDS:
            raise _another_set(name, f"COCO's order from {COCO_ENDS[0]} to {COCO_ENDS[1]}, this set's is {ends}")
        return _cut(ids, novel(fold))

    return split


def _interleaved(classes: Classes, fold: int, _: Sequence[str]) -> Split:
    return _cut(sorted(classes), slice(fold, None, 4))


def _fss(classes: Classes, fold: int, _: Sequence[str]) -> Split:
    """A part of the set will do; its validation classes are neither novel nor base."""
    part = fss1000_split()
    if strange := next((name for name in classes.values() if name not in part), None):
        raise _another_set("fss", f"class folders of FSS-1000, {strange} is none of its 1000")
    test, train = ([i for i, name in classes.items() if part[name] == wanted] for wanted in ("test", "train"))
    return test, train


def _listed(classes: Classes, fold: int, novel: Sequence[str]) -> Split:
    if not novel:
        raise ConfigError("episodes.scheme is list but episodes.novel is empty: give names or ids of the novel classes")
    by_name = {name: class_id for class_id, name in classes.items()}
    chosen = []
    for name in map(str, novel):
        class_id = by_name.get(name, int(name) if name.isdecimal() else None)
        if class_id not in classes:
            raise ConfigError(
                f"episodes.novel names {name!r}, which is none of the {len(classes)} classes of this set "
                f"({', '.join(list(by_name)[:5])}, ...): give names or ids as its manifest.json does"
            )
        chosen.append(class_id)
    return sorted(set(chosen)), [class_id for class_id in classes if class_id not in chosen]


SCHEMES: dict[SchemeName, Scheme] = {
    "pascal": Scheme(4, "classes 5i+1 to 5i+5 in VOC's order", _pascal),
    "coco": Scheme(4, "classes i+1, i+5, ... i+77", _coco("coco", lambda fold: slice(fold, None, 4))),
    "coco_contiguous": Scheme(
        4, "classes 20i+1 to 20i+20", _coco("coco_contiguous", lambda fold: slice(20 * fold, 20 * fold + 20))
    ),
    "fss": Scheme(1, "the 240 test classes; the 520 training classes are base", _fss),
    "interleaved": Scheme(4, "every 4th class from the i-th on", _interleaved),
    "list": Scheme(1, "the classes in episodes.novel", _listed),
}
"""PASCAL-5i and COCO-20i as PFENet and HSNet read them: interleaved is FWB's COCO split, contiguous is PANet's.
FSS-1000 as HSNet lists it, whose test classes are those of the data set's authors."""


@cache
def fss1000_split() -> dict[str, str]:
    """Class folder of FSS-1000 -> 'train' (520 classes), 'val' (240) or 'test' (240)."""
    lines = [line.split() for line in FSS1000_SPLIT.read_text().splitlines()]
    return {name: part for part, *names in lines for name in names}


def _cut(ids: list[int], novel: slice) -> Split:
    return ids[novel], [class_id for class_id in ids if class_id not in ids[novel]]


def _voc_name(name: str) -> str:
    plain = re.sub(r"[^a-z]", "", name.lower())
    return VOC_SYNONYMS.get(plain, plain)


def _another_set(scheme: str, wanted: str) -> ShardError:
    return ShardError(
        f"scheme {scheme} needs {wanted}: give the packed set that belongs to it with data.shards, or another "
        "episodes.scheme (interleaved and list take any set)"
    )
