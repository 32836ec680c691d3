"""The form in which a data set is declared, and the ways to divide classes that several sets share."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from shards.format import Manifest, ShardError

Draw = Literal["class_image", "image_class", "round_robin", "every_image", "every_pair"]
Labels = Literal["own", "flat"]
ProtocolName = Literal["default", "pfenet", "bam", "hsnet", "mshnet", "hdmnet", "gfsam"]
Split = tuple[list[int], list[int]]
"""Novel and base class ids."""

NOT_THE_SAME_EPISODES = "episodes of the same distribution, not the same ones: the published draws "
NO_LIST_PUBLISHED = NOT_THE_SAME_EPISODES + "come from NumPy's global generator and no list of them is published"


class ProtocolChanges(TypedDict, total=False):
    """Fields of `fss.data.protocol.Protocol` that have another value on one data set."""

    draw: Draw
    repeat_supports: bool
    min_area: int
    labels: Labels
    episodes: int
    passes: int | None
    ignore_255: bool
    note: str


SMALL_OBJECTS: ProtocolChanges = {"min_area": 0}
"""For sets whose images or objects are small."""
BINARY_MASKS: ProtocolChanges = {"labels": "own", "ignore_255": False, "min_area": 0}
"""For sets of one mask a class, without unknown pixels."""


@dataclass(frozen=True)
class FoldQuery:
    """A request for one fold of a packed set."""

    manifest: Manifest
    fold: int
    """Number of the fold, from 0."""
    novel: Sequence[str]
    """Names or ids of the novel classes that the user gave; only the scheme 'list' reads them."""
    shots: int
    """Supports of an episode, K."""

    @property
    def classes(self) -> dict[int, str]:
        """Class id -> name of the packed set."""
        return self.manifest.classes


@dataclass(frozen=True)
class PublishedTest:
    """The size of the published test set, by which an evaluation can tell that its images are others."""

    pairs: tuple[int, ...]
    """(image, class) pairs of each fold's novel classes."""
    min_area: int
    """Pixels that a class must cover in an image to count."""
    tolerance: float = 0.05
    """Relative difference up to which a packed set counts as the published one."""

    def count(self, manifest: Manifest, novel: Sequence[int]) -> int:
        """Count the (image, class) pairs of `novel`, class ids, in a packed set."""
        return sum(
            sample.classes.get(class_id, -1) >= self.min_area for sample in manifest.samples for class_id in novel
        )

    def matches(self, pairs: int, fold: int) -> bool:
        """Return True if a set with `pairs` pairs is about as large as the published one of fold `fold`."""
        return abs(pairs / self.pairs[fold] - 1) <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """All that the project knows of one data set, under the name that users give as `episodes.scheme`."""

    name: str
    title: str
    """Name in the literature."""
    packers: tuple[str, ...]
    """Subcommands of launch/pack.py that pack it."""
    folds: int
    """Number of folds; users count them from 0."""
    rule: str
    """Novel classes of fold i, in words."""
    split: Callable[[FoldQuery], Split]
    """Returns the novel and the base class ids. Raises ShardError if the packed set is another data set, and
    ConfigError if the query is incomplete."""
    depends_on_shots: bool = False
    """True if the classes of a fold depend on K."""
    has_base_classes: bool = True
    """False for sets that only serve for evaluation."""
    protocols: tuple[ProtocolName, ...] | None = None
    """Evaluation protocols that were used on it; None: all."""
    changes: Mapping[ProtocolName, ProtocolChanges] = field(default_factory=dict)
    """Differences of a protocol from its values on PASCAL-5i."""
    published_test: PublishedTest | None = None


def another_set(scheme: str, needed: str) -> ShardError:
    """Return the error for a packed set that does not have the classes of `scheme`; `needed` describes these."""
    return ShardError(
        f"scheme {scheme} needs {needed}: give the packed set that belongs to it with data.shards, or another "
        "episodes.scheme (interleaved and list take any set)"
    )


def divide(ids: list[int], novel: slice) -> Split:
    """Return the ids in the slice `novel` as novel classes, all others as base classes."""
    return ids[novel], [class_id for class_id in ids if class_id not in ids[novel]]


def divide_by_order(
    scheme: str, title: str, count: int, ends: tuple[str, str], novel: Callable[[int], slice]
) -> Callable[[FoldQuery], Split]:
    """Return a split of a set with `count` classes by the order of their ids.

    The set is recognised by its number of classes and by `ends`, the names of the first and the last. `novel` gives
    the slice of the ids for a fold. The split raises ShardError if the packed set is another.
    """

    def split(query: FoldQuery) -> Split:
        ids = sorted(query.classes)
        if len(ids) != count:
            raise another_set(scheme, f"the {count} classes of {title}, this set has {len(ids)}")
        if (actual := (query.classes[ids[0]], query.classes[ids[-1]])) != ends:
            raise another_set(scheme, f"{title}'s order from {ends[0]} to {ends[1]}, this set's is {actual}")
        return divide(ids, novel(query.fold))

    return split


def all_novel(scheme: str, names: Sequence[str]) -> Callable[[FoldQuery], Split]:
    """Return a split in which all classes are novel. It raises ShardError unless the set has exactly these names."""

    def split(query: FoldQuery) -> Split:
        if sorted(query.classes.values()) != sorted(names):
            raise another_set(scheme, f"the classes {', '.join(names)}")
        return list(query.classes), []

    return split


def classes_with_enough_images(query: FoldQuery) -> list[int]:
    """Return the classes that more than K photographs show, ids ascending: enough for a query and K supports."""
    shown = {
        (class_id, sample.crop_of or sample.key) for sample in query.manifest.samples for class_id in sample.classes
    }
    counts = Counter(class_id for class_id, _ in shown)
    return sorted(class_id for class_id, count in counts.items() if count > query.shots)


def class_named(name: str, classes: Mapping[int, str]) -> int | None:
    """Return the id of the class that has this name, else of the class that has this id, else None."""
    by_name = (class_id for class_id, known in classes.items() if known == name)
    class_id = next(by_name, int(name) if name.isdecimal() else None)
    return class_id if class_id in classes else None
