"""Folds against the literature's formulas, and the errors for a set that does not belong to a scheme."""

import pytest

from fss.data.folds import fold_of
from fss.datasets import DATASETS
from fss.datasets.fss1000 import fss1000_split
from fss.datasets.pascal import NAMES
from fss.errors import ConfigError
from shards.format import Manifest, ShardError
from shards.sources.voc import CLASSES
from shards.synthetic import CLASSES as SYNTHETIC

COCO = {i: f"class {i}" for i in range(2, 80)} | {1: "person", 80: "toothbrush"}


def of(classes: dict[int, str]) -> Manifest:
    return Manifest(name="toy", classes=classes)


@pytest.mark.parametrize("fold", range(4))
def test_pascal(fold):
    found = fold_of("pascal", fold, of(CLASSES))
    assert found.novel == tuple(range(5 * fold + 1, 5 * fold + 6))
    assert sorted(found.novel + found.base) == list(range(1, 21))


def test_pascal_goes_by_names_whatever_their_spelling_and_ids():
    spelled = {
        "tvmonitor": "TV Monitor",
        "diningtable": "dining table",
        "pottedplant": "potted-plant",
        "aeroplane": "airplane",
        "motorbike": "motorcycle",
        "sofa": "couch",
    }
    classes = {100 - i: spelled.get(name, name) for i, name in enumerate(NAMES)}
    assert fold_of("pascal", 0, of(classes)).novel == (96, 97, 98, 99, 100)
    assert fold_of("pascal", 3, of(classes)).novel == (81, 82, 83, 84, 85)


@pytest.mark.parametrize("fold", range(4))
def test_coco(fold):
    interleaved, contiguous = (fold_of(scheme, fold, of(COCO)) for scheme in ("coco", "coco_contiguous"))
    assert interleaved.novel == tuple(4 * x - 3 + fold for x in range(1, 21))
    assert contiguous.novel == tuple(range(20 * fold + 1, 20 * fold + 21))
    for found in (interleaved, contiguous):
        assert sorted(found.novel + found.base) == list(range(1, 81))


def test_fss_takes_the_official_split():
    parts = list(fss1000_split().values())
    assert [parts.count(part) for part in ("train", "val", "test")] == [520, 240, 240]
    whole = of(dict(enumerate(sorted(fss1000_split()), start=1)))
    found = fold_of("fss", 0, whole)
    assert len(found.novel) == 240 and len(found.base) == 520 and not set(found.novel) & set(found.base)


def test_fss_takes_a_part_of_the_set():
    some = of({1: "abacus", 2: "abe's_flyingfish", 3: "zebra", 4: "wooden_spoon", 5: "african_elephant"})
    found = fold_of("fss", 0, some)  # the abacus is a validation class
    assert found.novel == (2, 4) and found.base == (3, 5)


@pytest.mark.parametrize("classes", [24, 17])
def test_interleaved_folds_part_the_classes(classes):
    ids = [3 * i + 1 for i in range(classes)]
    folds = [fold_of("interleaved", fold, of({i: str(i) for i in ids})) for fold in range(4)]
    assert sorted(sum((f.novel for f in folds), ())) == ids
    assert all(sorted(f.novel + f.base) == ids for f in folds)
    assert folds[1].novel[:3] == (4, 16, 28)


def test_a_list_of_names_or_ids():
    found = fold_of("list", 0, of(CLASSES), ["cat", "3", "cat"])
    assert found.novel == (3, 8)
    assert sorted(found.novel + found.base) == list(range(1, 21))


@pytest.mark.parametrize(
    "scheme, fold, classes, novel, message",
    [
        ("pascal", 4, CLASSES, (), "episodes.fold is 4.*classes 5i.1 to 5i.5.*give 0 to 3"),
        ("coco", -1, COCO, (), "episodes.fold is -1"),
        ("list", 1, CLASSES, ["cat"], "only fold 0"),
        ("pascal", 0, SYNTHETIC, (), "20 classes of PASCAL VOC, this set has no aeroplane.*data.shards"),
        ("pascal", 0, CLASSES | {21: "lamp"}, (), "this set has 21"),
        ("coco", 0, CLASSES, (), "80 classes of COCO, this set has 20"),
        ("coco_contiguous", 0, dict(enumerate(sorted(COCO.values()), 1)), (), "from person to toothbrush.*'class 10'"),
        ("fss", 0, CLASSES, (), "class folders of FSS-1000, aeroplane is none"),
        ("fss", 0, {1: "zebra", 2: "abacus"}, (), "leaves 0 novel and 1 base"),
        ("interleaved", 3, {1: "a", 2: "b"}, (), "leaves 0 novel and 2 base classes of the 2 in set toy"),
        ("interleaved", 0, {}, (), "leaves 0 novel and 0 base"),
        ("list", 0, CLASSES, (), "episodes.novel is empty"),
        ("list", 0, CLASSES, ["cat", "unicorn"], "'unicorn', which is none of the 20"),
        ("list", 0, CLASSES, ["21"], "'21', which is none"),
        ("list", 0, CLASSES, list(NAMES), "leaves 20 novel and 0 base"),
        ("coco", 0, COCO, ["person"], "set the scheme to list"),
    ],
)
def test_what_does_not_fit_is_an_error(scheme, fold, classes, novel, message):
    with pytest.raises((ConfigError, ShardError), match=message):
        fold_of(scheme, fold, of(classes), novel)


def test_every_scheme_is_named_as_its_errors_name_it():
    for name, dataset in DATASETS.items():
        with pytest.raises(ConfigError, match=f"scheme {name} "):
            fold_of(name, dataset.folds, of(CLASSES))
