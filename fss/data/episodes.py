"""Episodes: which class, which query, which supports; drawn by a policy, or read from a list (fss/data/episode_lists.py).

A drawn episode is a pure function of the samples, the policy, a seed and its number: it does not depend on workers,
ranks, the order of calls, or how the samples were dealt to shards.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from fss.data.folds import Fold
from fss.datasets import SchemeName
from fss.datasets.base import Draw, Labels
from fss.errors import at_least
from shards.format import Manifest, ShardError

# What a random stream is for; the first word of its seed (see shards/read.py).
EPISODE, PASS, SUBSET = 21, 22, 23
NAMED = 5  # classes named in an error


@dataclass(frozen=True)
class Episode:
    """One episode; images are indices into the manifest's samples."""

    seed: int
    number: int
    class_id: int
    query: int
    supports: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How episodes are drawn from the images of some classes."""

    draw: Draw
    """How class and query are drawn. 'class_image': a class, then an image of it. 'image_class': an image of a permuted
    pass over all, then one of its classes. 'round_robin': the classes in turn, then an image. 'every_image': all images
    in order, then a class. 'every_pair': all (image, class) pairs in order."""
    repeat_supports: bool = False
    """Whether an image may be drawn twice among the supports of an episode."""
    min_area: int = 2048
    """A class counts for an image that shows so many pixels of it at original size; small images need a lower value."""
    labels: Labels = "own"
    """Masks where objects overlap. 'own': each class keeps all its pixels. 'flat': later classes cover earlier ones, as
    in the label maps (PNG) that most published code reads."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which classes are novel."""

    scheme: SchemeName = "interleaved"
    """Convention of the folds. 'coco' is interleaved COCO-20i; 'interleaved' takes every 4th class of any set; 'list'
    takes the classes in `novel`."""
    fold: int = 0
    """Which fold is held out, from 0."""
    novel: list[str] = field(default_factory=list)
    """Names or ids of the novel classes (scheme 'list')."""

    def __post_init__(self) -> None:
        at_least("episodes", self, fold=0)


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig(SplitConfig, Policy):
    """Which classes are novel, and how training episodes are drawn from the others."""

    shots: int = 1
    """K, the support images of an episode."""
    draw: Draw = "image_class"
    novel_in_training: Literal["background", "drop"] = "background"
    """Training images that also hold novel classes: keep them with these as background (PFENet, QGNet, HSNet), or drop
    them (BAM, MSANet, HDMNet, MSHNet), which is worth some points on PASCAL."""
    images_per_class: int | None = None
    """Train on a random choice of at most so many images of each class (MSHNet: 750); null: on all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("episodes", self, shots=1, min_area=0, images_per_class=2)


class EpisodeSource:
    """Endless episodes over the images of `classes` that show enough of them.

    `images` are the eligible images, as manifest indices in the order of their keys; "in order" in a policy means that
    order. `len()` is the number of episodes of one pass: of images, of (image, class) pairs ('every_pair') or of
    (photograph, class) pairs ('round_robin').

    No episode has two crops of one photograph (shards.format.Meta.crop_of): an image of a class is drawn as a
    photograph and then a crop of it that shows the class. Elsewhere every image is its own photograph.

    others_apart: leave out images that hold any class but `classes`.
    images_per_class: keep a random choice, by `seed`, of so many images of each class; a class with fewer keeps all.

    Raises ShardError, naming the classes, where one has too few images for a query and `shots` supports.
    """

    def __init__(
        self,
        manifest: Manifest,
        classes: Sequence[int],
        policy: Policy,
        shots: int,
        seed: int,
        *,
        others_apart: bool = False,
        images_per_class: int | None = None,
    ):
        self.classes = tuple(sorted(classes))
        self.policy = policy
        self.shots = shots
        self.seed = seed
        pairs = _pairs(manifest)  # [all pairs, 4]
        ours = np.isin(pairs[:, 1], self.classes)
        kept = ours & (pairs[:, 2] >= policy.min_area)
        if others_apart:
            kept &= ~np.isin(pairs[:, 0], pairs[~ours, 0])
        eligible = pairs[kept]
        if images_per_class is not None:
            eligible = _subset(eligible, images_per_class, seed)
        self._image, self._class = eligible[:, 0], eligible[:, 1]  # [pairs]
        self._shown = {class_id: _Shown.of(eligible, class_id) for class_id in self.classes}
        self._require_enough(manifest, pairs[ours], others_apart)
        first = np.flatnonzero(np.diff(self._image, prepend=-1))  # where each image's pairs begin
        self.images = self._image[first]
        self._bounds = np.append(first, len(self._image))

    def __len__(self) -> int:
        match self.policy.draw:
            case "every_pair":
                return len(self._image)
            case "round_robin":
                return sum(map(len, self._shown.values()))
            case _:
                return len(self.images)

    def reseeded(self, seed: int) -> "EpisodeSource":
        """The same images with the episodes of another seed."""
        other = copy(self)
        other.seed = seed
        return other

    def draw(self, number: int) -> Episode:
        """Episode `number`, counted from 0 without an end."""
        rng = np.random.default_rng([EPISODE, self.seed, number])
        query = self._query(number, rng)
        class_id = int(self._class[query])
        shown = self._shown[class_id]
        others = len(shown) - 1
        if self.policy.repeat_supports:
            chosen = rng.integers(others, size=self.shots)
        else:
            chosen = rng.choice(others, self.shots, replace=False)
        chosen += chosen >= shown.place(query)  # pass over the query's photograph
        supports = tuple(self._image[shown.draw(chosen, rng)].tolist())
        return Episode(self.seed, number, class_id, int(self._image[query]), supports)

    def _query(self, number: int, rng: np.random.Generator) -> int:
        """The (image, class) pair that episode `number` is about."""
        turn, place = divmod(number, len(self))
        match self.policy.draw:
            case "class_image":
                return self._any(self.classes[rng.integers(len(self.classes))], rng)
            case "round_robin":
                return self._any(self.classes[number % len(self.classes)], rng)
            case "image_class":
                image = _permutation(len(self), self.seed, turn)[place]
                return rng.integers(self._bounds[image], self._bounds[image + 1])
            case "every_image":
                return rng.integers(self._bounds[place], self._bounds[place + 1])
            case "every_pair":
                return place

    def _any(self, class_id: int, rng: np.random.Generator) -> int:
        """A pair of the class: a photograph, then a crop of it."""
        shown = self._shown[class_id]
        return shown.draw(rng.integers(len(shown)), rng)

    def _require_enough(self, manifest: Manifest, held: np.ndarray, others_apart: bool) -> None:
        """held: the pairs of our classes, eligible or not."""
        if not self.classes:
            raise ShardError(
                f"no class of set {manifest.name} is left to draw episodes from: hold fewer of them out, or choose an "
                "episodes.scheme that has base classes"
            )
        need = 2 if self.policy.repeat_supports else self.shots + 1
        short = [class_id for class_id in self.classes if len(self._shown[class_id]) < need]
        if short:
            counts = [
                f"{manifest.classes[class_id]} has {len(self._shown[class_id])} of its "
                f"{len(_Shown.of(held, class_id))} images"
                for class_id in short[:NAMED]
            ]
            counts += [f"{len(short) - NAMED} more classes fall short"] if len(short) > NAMED else []
            apart = " and none of another class, as novel_in_training drop has it" if others_apart else ""
            raise ShardError(
                f"{self.shots}-shot episodes need {need} images a class that show min_area = {self.policy.min_area} "
                f"pixels of it{apart}; in set {manifest.name} {', '.join(counts)}: lower min_area or shots, or choose "
                f"another fold{', set or novel_in_training' if others_apart else ' or set'}"
            )


@dataclass(frozen=True)
class _Shown:
    """Where a class is shown: pairs grouped by photograph, of which a part data set has several crops."""

    pairs: np.ndarray
    """[pairs of the class] rows."""
    bounds: np.ndarray
    """[photographs + 1] where the pairs of each begin, and the end."""

    @classmethod
    def of(cls, pairs: np.ndarray, class_id: int) -> "_Shown":
        """Of rows as `_pairs` gives them."""
        rows = np.flatnonzero(pairs[:, 1] == class_id)
        return cls(rows, np.append(np.flatnonzero(np.diff(pairs[rows, 3], prepend=-1)), len(rows)))

    def __len__(self) -> int:
        """Photographs."""
        return len(self.bounds) - 1

    def place(self, pair: int) -> int:
        """The photograph, counted from 0, that `pair` is of."""
        return np.searchsorted(self.bounds, np.searchsorted(self.pairs, pair), side="right") - 1

    def draw(self, photograph: np.ndarray | int, rng: np.random.Generator) -> np.ndarray | int:
        """A pair of the photograph, or one of each; where it has only one, nothing is taken from `rng`."""
        return self.pairs[rng.integers(self.bounds[photograph], self.bounds[photograph + 1])]


def training_source(
    manifest: Manifest, fold: Fold, config: EpisodeConfig, seed: int, held_out: Sequence[int] = ()
) -> EpisodeSource:
    """Training episodes over the base classes of `fold` without those held out for validation.

    Held-out classes are treated as novel ones: where `config` drops images with novel classes, theirs go too.
    """
    return EpisodeSource(
        manifest,
        [class_id for class_id in fold.base if class_id not in held_out],
        config,
        config.shots,
        seed,
        others_apart=config.novel_in_training == "drop",
        images_per_class=config.images_per_class,
    )


def evaluation_episodes(
    manifest: Manifest,
    classes: Sequence[int],
    policy: Policy,
    shots: int,
    episodes: int,
    seeds: Sequence[int],
    *,
    passes: int | None = None,
) -> list[Episode]:
    """`episodes` episodes of each seed over `classes`, but at most `passes` passes over their images."""
    source = EpisodeSource(manifest, classes, policy, shots, seed=0)
    count = episodes if passes is None else min(episodes, passes * len(source))
    return [source.draw(number) for source in map(source.reseeded, seeds) for number in range(count)]


def _pairs(manifest: Manifest) -> np.ndarray:
    """Every (image, class) pair as a row: image, class id, area, photograph.

    In the order of the images' keys; the crops of a photograph stand together, in the place of its key.
    """
    samples = manifest.samples
    photograph = [sample.crop_of or sample.key for sample in samples]
    numbers = {name: number for number, name in enumerate(sorted(set(photograph)))}
    rows = [
        (index, class_id, area, numbers[photograph[index]])
        for index in sorted(range(len(samples)), key=lambda index: (photograph[index], samples[index].key))
        for class_id, area in sorted(samples[index].classes.items())
    ]
    return np.array(rows, np.int64).reshape(-1, 4)


def _subset(pairs: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most `most` rows of each class of `pairs` [n, 4], in their order."""
    kept = np.zeros(len(pairs), bool)
    for class_id in np.unique(pairs[:, 1]):
        rows = np.flatnonzero(pairs[:, 1] == class_id)
        kept[np.random.default_rng([SUBSET, seed, class_id]).permutation(rows)[:most]] = True
    return pairs[kept]


@lru_cache(maxsize=2)
def _permutation(images: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng([PASS, seed, turn]).permutation(images)
