"""LVIS-92i as Matcher and GF-SAM evaluate on it: ten folds of the classes of LVIS v1."""

from fss.datasets.base import (
    BINARY_MASKS,
    NO_LIST_PUBLISHED,
    SMALL_OBJECTS,
    DataSet,
    FoldQuery,
    Split,
    another_set,
    classes_with_enough_images,
)

CLASSES = 1203
EXTRACT = NO_LIST_PUBLISHED + "; images are counted in the official JSON, there in an extract of it, "


def split(query: FoldQuery) -> Split:
    """Divide the classes with enough images into ten equal folds; the remainder of the division is in none.

    Raises ShardError if the packed set has another number of classes.
    """
    if len(query.classes) != CLASSES:
        raise another_set("lvis", f"the {CLASSES} classes of LVIS, this set has {len(query.classes)}")
    enough = classes_with_enough_images(query)
    return enough[query.fold :: 10][: len(enough) // 10], []


LVIS = DataSet(
    name="lvis",
    title="LVIS-92i",
    packers=("lvis",),
    folds=10,
    rule="every 10th from the i-th on of the classes in more than K images",
    split=split,
    depends_on_shots=True,
    has_base_classes=False,
    protocols=("default", "gfsam"),
    changes={
        "default": SMALL_OBJECTS,
        "gfsam": {
            **BINARY_MASKS,
            "draw": "round_robin",
            "episodes": 2300,
            "note": EXTRACT + "so a class near K images may be in or out, and those after it in other folds",
        },
    },
)
