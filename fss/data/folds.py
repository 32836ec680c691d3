"""Folds: which classes of a set are novel and which are base, by the conventions of the literature.

A convention is one entry of SCHEMES. Folds are counted from 0, classes have the ids of the manifest.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from fss.errors import ConfigError
from shards.format import Manifest, ShardError

SchemeName = Literal[
    "pascal",
    "coco",
    "coco_contiguous",
    "fss",
    "lvis",
    "paco",
    "pascal_part",
    "deepglobe",
    "isic",
    "isaid",
    "interleaved",
    "list",
]
Classes = dict[int, str]
Split = tuple[list[int], list[int]]
"""Novel and base class ids."""

FSS1000_SPLIT = Path(__file__).with_name("fss1000_split.txt")
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VOC_SYNONYMS = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}
COCO_CLASSES = 80
COCO_ENDS = ("person", "toothbrush")  # the first and the last of the official order
LVIS_CLASSES = 1203
SUPERCLASSES = ("animals", "indoor", "person", "vehicles")  # of PASCAL-Part
DEEPGLOBE_CLASSES = ("urban", "agriculture", "rangeland", "forest", "water", "barren")
ISIC_CLASSES = ("nevus", "melanoma", "seborrheic_keratosis")
ISAID_CLASSES = 15
ISAID_ENDS = ("ship", "harbor")


@dataclass(frozen=True)
class Fold:
    """The classes of one fold: none that is novel is trained on as a class."""

    scheme: str
    fold: int
    novel: tuple[int, ...]
    base: tuple[int, ...]
    rule: str = ""
    """Which classes are novel, for people; with their number where it depends on the shots."""


@dataclass(frozen=True)
class Question:
    """What decides a split besides the scheme."""

    manifest: Manifest
    fold: int
    named: Sequence[str]
    """Names or ids that the user gave."""
    shots: int

    @property
    def classes(self) -> Classes:
        """Of the packed set."""
        return self.manifest.classes


@dataclass(frozen=True)
class Scheme:
    """A convention for cutting the classes of a data set into novel and base."""

    folds: int
    rule: str
    """Which classes of fold i are novel, for people."""
    split: Callable[[Question], Split]
    """Novel and base ids. Raises ShardError where the set is another."""
    by_shots: bool = False
    """Whether the classes depend on K."""
    trained: bool = True
    """Whether there are base classes; without them the scheme is for evaluation alone."""


def fold_of(scheme: str, fold: int, manifest: Manifest, novel: Sequence[str] = (), shots: int = 1) -> Fold:
    """The classes of fold `fold` of a packed set by convention `scheme`, ids ascending.

    novel: names or ids of the novel classes, for the scheme 'list' only. shots: K, which decides the classes of 'lvis'
    and 'paco'.
    Raises ConfigError for a fold or names that the scheme does not have, ShardError where the set is not the scheme's.
    """
    how = SCHEMES[scheme]
    if not 0 <= fold < how.folds:
        wanted = f"give 0 to {how.folds - 1}" if how.folds > 1 else "it has only fold 0"
        raise ConfigError(f"episodes.fold is {fold}, outside of the scheme {scheme} ({how.rule}): {wanted}")
    if novel and scheme != "list":
        raise ConfigError(f"episodes.novel names classes but episodes.scheme is {scheme}: set the scheme to list")
    novel_ids, base_ids = how.split(Question(manifest, fold, novel, shots))
    if not novel_ids or (how.trained and not base_ids):
        raise ShardError(
            f"scheme {scheme}, fold {fold} leaves {len(novel_ids)} novel and {len(base_ids)} base classes of the "
            f"{len(manifest.classes)} in set {manifest.name}: choose another episodes.scheme or set"
        )
    rule = f"{how.rule}; at K = {shots} they are {len(novel_ids)}" if how.by_shots else how.rule
    return Fold(scheme, fold, tuple(sorted(novel_ids)), tuple(sorted(base_ids)), rule)


def training_fold(scheme: str, fold: int, manifest: Manifest, novel: Sequence[str] = ()) -> Fold:
    """The same for a training, which needs base classes. Raises ConfigError where the scheme has none."""
    if not SCHEMES[scheme].trained:
        trained = ", ".join(name for name, how in SCHEMES.items() if how.trained)
        raise ConfigError(
            f"episodes.scheme is {scheme}, which has no base classes and is for evaluation alone: choose {trained}"
        )
    return fold_of(scheme, fold, manifest, novel)


def class_named(name: str, classes: Classes) -> int | None:
    """The id of the class that has this name, else of the one whose id it is; None where there is none."""
    by_name = (class_id for class_id, known in classes.items() if known == name)
    class_id = next(by_name, int(name) if name.isdecimal() else None)
    return class_id if class_id in classes else None


def _pascal(asked: Question) -> Split:
    ids = {_voc_name(name): class_id for class_id, name in asked.classes.items()}
    if set(ids) != set(VOC_CLASSES):
        missing = next((name for name in VOC_CLASSES if name not in ids), None)
        detail = f"no {missing}" if missing else f"{len(ids)} of them"
        raise _another_set("pascal", f"the 20 classes of PASCAL VOC, this set has {detail}")
    return _cut([ids[name] for name in VOC_CLASSES], slice(5 * asked.fold, 5 * asked.fold + 5))


def _numbered(
    scheme: str, data: str, count: int, ends: tuple[str, str], novel: Callable[[int], slice]
) -> Callable[[Question], Split]:
    """A cut of the `count` classes of `data` by their order, which `ends`, the first and the last, tell."""

    def split(asked: Question) -> Split:
        ids = sorted(asked.classes)
        if len(ids) != count:
            raise _another_set(scheme, f"the {count} classes of {data}, this set has {len(ids)}")
        if (found := (asked.classes[ids[0]], asked.classes[ids[-1]])) != ends:
            raise _another_set(scheme, f"{data}'s order from {ends[0]} to {ends[1]}, this set's is {found}")
        return _cut(ids, novel(asked.fold))

    return split


def _interleaved(asked: Question) -> Split:
    return _cut(sorted(asked.classes), slice(asked.fold, None, 4))


def _fss(asked: Question) -> Split:
    """A part of the set will do; its validation classes are neither novel nor base."""
    part, classes = fss1000_split(), asked.classes
    if strange := next((name for name in classes.values() if name not in part), None):
        raise _another_set("fss", f"class folders of FSS-1000, {strange} is none of its 1000")
    test, train = ([i for i, name in classes.items() if part[name] == wanted] for wanted in ("test", "train"))
    return test, train


def _lvis(asked: Question) -> Split:
    """Ten equal folds of the classes with enough images; what the division leaves over is in none."""
    if len(asked.classes) != LVIS_CLASSES:
        raise _another_set("lvis", f"the {LVIS_CLASSES} classes of LVIS, this set has {len(asked.classes)}")
    enough = _with_images(asked)
    return enough[asked.fold :: 10][: len(enough) // 10], []


def _paco(asked: Question) -> Split:
    """Four equal folds of the training set's classes, cut before those without enough images are left out."""
    ids = sorted(asked.classes)
    if strange := next((name for name in asked.classes.values() if ":" not in name), None):
        raise _another_set("paco", f"parts of objects such as mug:handle, {strange} is none")
    return sorted({*ids[asked.fold :: 4][: len(ids) // 4]} & {*_with_images(asked)}), []


def _pascal_part(asked: Question) -> Split:
    group = {class_id: name.split("/")[0] for class_id, name in asked.classes.items()}
    if strange := next((i for i in group if group[i] not in SUPERCLASSES), None):
        raise _another_set("pascal_part", f"names such as animals/dog+HEAD, not {asked.classes[strange]}")
    novel = [class_id for class_id in group if group[class_id] == SUPERCLASSES[asked.fold]]
    return novel, [class_id for class_id in group if class_id not in novel]


def _whole(scheme: str, names: tuple[str, ...]) -> Callable[[Question], Split]:
    """All classes of a small data set."""

    def split(asked: Question) -> Split:
        if sorted(asked.classes.values()) != sorted(names):
            raise _another_set(scheme, f"the classes {', '.join(names)}")
        return list(asked.classes), []

    return split


def _listed(asked: Question) -> Split:
    classes = asked.classes
    if not asked.named:
        raise ConfigError("episodes.scheme is list but episodes.novel is empty: give names or ids of the novel classes")
    chosen = []
    for name in map(str, asked.named):
        if (class_id := class_named(name, classes)) is None:
            raise ConfigError(
                f"episodes.novel names {name!r}, which is none of the {len(classes)} classes of this set "
                f"({', '.join(list(classes.values())[:5])}, ...): give names or ids as its manifest.json does"
            )
        chosen.append(class_id)
    return sorted(set(chosen)), [class_id for class_id in classes if class_id not in chosen]


SCHEMES: dict[SchemeName, Scheme] = {
    "pascal": Scheme(4, "classes 5i+1 to 5i+5 in VOC's order", _pascal),
    "coco": Scheme(
        4,
        "classes i+1, i+5, ... i+77",
        _numbered("coco", "COCO", COCO_CLASSES, COCO_ENDS, lambda fold: slice(fold, None, 4)),
    ),
    "coco_contiguous": Scheme(
        4,
        "classes 20i+1 to 20i+20",
        _numbered("coco_contiguous", "COCO", COCO_CLASSES, COCO_ENDS, lambda i: slice(20 * i, 20 * i + 20)),
    ),
    "fss": Scheme(1, "the 240 test classes; the 520 training classes are base", _fss),
    "lvis": Scheme(
        10, "every 10th from the i-th on of the classes in more than K images", _lvis, by_shots=True, trained=False
    ),
    "paco": Scheme(
        4,
        "every 4th class of the training set from the i-th on, if in more than K images",
        _paco,
        by_shots=True,
        trained=False,
    ),
    "pascal_part": Scheme(4, "the parts of animals, of indoor objects, of persons, of vehicles", _pascal_part),
    "deepglobe": Scheme(1, "all 6 classes", _whole("deepglobe", DEEPGLOBE_CLASSES), trained=False),
    "isic": Scheme(1, "all 3 classes", _whole("isic", ISIC_CLASSES), trained=False),
    "isaid": Scheme(
        3,
        "classes 5i+1 to 5i+5",
        _numbered("isaid", "iSAID", ISAID_CLASSES, ISAID_ENDS, lambda fold: slice(5 * fold, 5 * fold + 5)),
    ),
    "interleaved": Scheme(4, "every 4th class from the i-th on", _interleaved),
    "list": Scheme(1, "the classes in episodes.novel", _listed),
}
"""PASCAL-5i and COCO-20i as PFENet and HSNet read them: interleaved is FWB's COCO split, contiguous is PANet's.
FSS-1000 as HSNet lists it, whose test classes are those of the data set's authors. The others as Matcher and GF-SAM
evaluate on them."""


@cache
def fss1000_split() -> dict[str, str]:
    """Class folder of FSS-1000 -> 'train' (520 classes), 'val' (240) or 'test' (240)."""
    lines = [line.split() for line in FSS1000_SPLIT.read_text().splitlines()]
    return {name: part for part, *names in lines for name in names}


def _with_images(asked: Question) -> list[int]:
    """The classes that more than K photographs show, ids ascending: enough for a query and K supports."""
    seen = {
        (class_id, sample.crop_of or sample.key) for sample in asked.manifest.samples for class_id in sample.classes
    }
    times = Counter(class_id for class_id, _ in seen)
    return sorted(class_id for class_id, count in times.items() if count > asked.shots)


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
