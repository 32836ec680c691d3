"""PASCAL-5i (Shaban et al. 2017): PASCAL VOC 2012 with SBD, four folds of five classes."""

import re

from fss.datasets.base import DataSet, FoldQuery, PublishedTest, Split, another_set, divide
from shards.sources.voc import CLASSES

NAMES = tuple(CLASSES.values())
SYNONYMS = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}


def split(query: FoldQuery) -> Split:
    """Divide the 20 classes by their names, whatever their spelling and ids. Raises ShardError if they are others."""
    ids = {_plain(name): class_id for class_id, name in query.classes.items()}
    if set(ids) != set(NAMES):
        missing = next((name for name in NAMES if name not in ids), None)
        detail = f"no {missing}" if missing else f"{len(ids)} of them"
        raise another_set("pascal", f"the 20 classes of PASCAL VOC, this set has {detail}")
    return divide([ids[name] for name in NAMES], slice(5 * query.fold, 5 * query.fold + 5))


def _plain(name: str) -> str:
    """Return VOC's own spelling of a class name."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    return SYNONYMS.get(plain, plain)


PASCAL = DataSet(
    name="pascal",
    title="PASCAL-5i",
    packers=("voc",),
    folds=4,
    rule="classes 5i+1 to 5i+5 in VOC's order",
    split=split,
    published_test=PublishedTest(pairs=(346, 451, 725, 346), min_area=2048),
)
