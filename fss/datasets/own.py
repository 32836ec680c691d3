"""Folds of any packed set: every 4th class, or the classes that the user names. Protocols have PASCAL's values."""

from fss.datasets.base import SMALL_OBJECTS, DataSet, FoldQuery, Split, class_named, divide
from fss.errors import ConfigError

PACKERS = ("coco", "indexed", "synthetic", "voc")


def interleaved(query: FoldQuery) -> Split:
    """Return every 4th class from the fold's number on as novel, all others as base."""
    return divide(sorted(query.classes), slice(query.fold, None, 4))


def listed(query: FoldQuery) -> Split:
    """Return the classes that the user names as novel, all others as base.

    Raises ConfigError if none is named, or a name or id is not in the packed set.
    """
    classes = query.classes
    if not query.novel:
        raise ConfigError("episodes.scheme is list but episodes.novel is empty: give names or ids of the novel classes")
    chosen = []
    for name in map(str, query.novel):
        if (class_id := class_named(name, classes)) is None:
            raise ConfigError(
                f"episodes.novel names {name!r}, which is none of the {len(classes)} classes of this set "
                f"({', '.join(list(classes.values())[:5])}, ...): give names or ids as its manifest.json does"
            )
        chosen.append(class_id)
    return sorted(set(chosen)), [class_id for class_id in classes if class_id not in chosen]


INTERLEAVED = DataSet(
    name="interleaved",
    title="any set",
    packers=PACKERS,
    folds=4,
    rule="every 4th class from the i-th on",
    split=interleaved,
    changes={"default": SMALL_OBJECTS},
)
LIST = DataSet(
    name="list",
    title="any set",
    packers=PACKERS,
    folds=1,
    rule="the classes in episodes.novel",
    split=listed,
    changes={"default": SMALL_OBJECTS},
)
