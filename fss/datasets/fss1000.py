"""FSS-1000 (Li et al. 2020): the split that HSNet lists, whose test classes are those of the data set's authors."""

from functools import cache
from pathlib import Path

from fss.datasets.base import DataSet, FoldQuery, ProtocolChanges, PublishedTest, Split, another_set

SPLIT_FILE = Path(__file__).with_name("fss1000_split.txt")
ALL_IMAGES: ProtocolChanges = {"draw": "every_image", "episodes": 2400, "passes": 1, "min_area": 0}


@cache
def fss1000_split() -> dict[str, str]:
    """Return class folder -> 'train' (520 classes), 'val' (240) or 'test' (240)."""
    lines = [line.split() for line in SPLIT_FILE.read_text().splitlines()]
    return {name: part for part, *names in lines for name in names}


def split(query: FoldQuery) -> Split:
    """Return the test and the training classes; validation classes are neither novel nor base.

    A packed set with a part of the classes is accepted. Raises ShardError if a class is not one of FSS-1000.
    """
    part, classes = fss1000_split(), query.classes
    if unknown := next((name for name in classes.values() if name not in part), None):
        raise another_set("fss", f"class folders of FSS-1000, {unknown} is none of its 1000")
    test, train = ([i for i, name in classes.items() if part[name] == wanted] for wanted in ("test", "train"))
    return test, train


FSS = DataSet(
    name="fss",
    title="FSS-1000",
    packers=("fss1000",),
    folds=1,
    rule="the 240 test classes; the 520 training classes are base",
    split=split,
    protocols=("default", "hsnet", "gfsam"),
    changes={"default": {"min_area": 0}, "hsnet": ALL_IMAGES, "gfsam": ALL_IMAGES},
    published_test=PublishedTest(pairs=(2400,), min_area=0),
)
