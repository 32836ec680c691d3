"""PACO-Part as Matcher and GF-SAM evaluate on it: four folds of the parts of objects in PACO-LVIS."""

from fss.datasets.base import (
    BINARY_MASKS,
    SMALL_OBJECTS,
    DataSet,
    FoldQuery,
    Split,
    another_set,
    classes_with_enough_images,
)
from fss.datasets.lvis import EXTRACT


def split(query: FoldQuery) -> Split:
    """Divide the classes of the training set into four equal folds, then leave out those without enough images.

    Raises ShardError if a class is not a part of an object.
    """
    ids = sorted(query.classes)
    if unknown := next((name for name in query.classes.values() if ":" not in name), None):
        raise another_set("paco", f"parts of objects such as mug:handle, {unknown} is none")
    return sorted({*ids[query.fold :: 4][: len(ids) // 4]} & {*classes_with_enough_images(query)}), []


PACO = DataSet(
    name="paco",
    title="PACO-Part",
    packers=("paco",),
    folds=4,
    rule="every 4th class of the training set from the i-th on, if in more than K images",
    split=split,
    depends_on_shots=True,
    has_base_classes=False,
    protocols=("default", "gfsam"),
    changes={
        "default": SMALL_OBJECTS,
        "gfsam": {
            **BINARY_MASKS,
            "draw": "class_image",
            "episodes": 2500,
            "note": EXTRACT + "so a class near K images may be in or out",
        },
    },
)
