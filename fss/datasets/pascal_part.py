"""PASCAL-Part as Matcher and GF-SAM evaluate on it: a fold for the parts of each superclass of objects."""

from fss.datasets.base import BINARY_MASKS, NO_LIST_PUBLISHED, SMALL_OBJECTS, DataSet, FoldQuery, Split, another_set
from shards.sources.pascal_part import SUPERCLASSES


def split(query: FoldQuery) -> Split:
    """Return the parts of one superclass as novel, all others as base. Raises ShardError if a name has none."""
    group = {class_id: name.split("/")[0] for class_id, name in query.classes.items()}
    if unknown := next((i for i in group if group[i] not in SUPERCLASSES), None):
        raise another_set("pascal_part", f"names such as animals/dog+HEAD, not {query.classes[unknown]}")
    novel = [class_id for class_id in group if group[class_id] == SUPERCLASSES[query.fold]]
    return novel, [class_id for class_id in group if class_id not in novel]


PASCAL_PART = DataSet(
    name="pascal_part",
    title="PASCAL-Part",
    packers=("pascal_part",),
    folds=4,
    rule="the parts of animals, of indoor objects, of persons, of vehicles",
    split=split,
    protocols=("default", "gfsam"),
    changes={
        "default": SMALL_OBJECTS,
        "gfsam": {
            **BINARY_MASKS,
            "draw": "round_robin",
            "episodes": 2500,
            "passes": 1,
            "repeat_supports": False,
            "note": NO_LIST_PUBLISHED + ", and prefer photographs most of whose objects show the part",
        },
    },
)
