"""Episodes: class, query and supports, drawn by a policy or read from a list (fss/data/episode_lists.py).

A drawn episode is a pure function of the samples, the policy, a seed and its number: it does not depend on workers,
ranks, the order of calls, or the division of the samples into shards.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from fss.data.class_images import ClassImages, image_class_pairs, limit_images
from fss.data.folds import Fold
from fss.datasets import SchemeName
from fss.datasets.base import Draw, Labels
from fss.errors import at_least
from shards.format import Manifest, ShardError

# Purposes of random streams; the first word of their seeds (see shards/read.py).
EPISODE, PASS = 21, 22
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
    """Rules by which episodes are drawn from the images of some classes."""

    draw: Draw
    """Order of class and query. 'class_image': a class, then an image of it. 'image_class': an image of a permuted pass
    over all, then one of its classes. 'round_robin': the classes in turn, then an image. 'every_image': all images
    in order, then a class. 'every_pair': all (image, class) pairs in order."""
    repeat_supports: bool = False
    """Allow an image twice among the supports of an episode."""
    min_area: int = 2048
    """Pixels of a class at original size from which an image counts for it; small images need a lower value."""
    labels: Labels = "own"
    """Masks of overlapping objects. 'own': each class keeps all its pixels. 'flat': later classes cover earlier ones,
    as in the label maps (PNG) that most reference implementations read."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Choice of the novel classes."""

    scheme: SchemeName = "interleaved"
    """Convention of the folds. 'coco' is interleaved COCO-20i; 'interleaved' takes every 4th class of any set; 'list'
    takes the classes in `novel`."""
    fold: int = 0
    """Fold whose classes training leaves out, from 0."""
    novel: list[str] = field(default_factory=list)
    """Names or ids of the novel classes (scheme 'list')."""

    def __post_init__(self) -> None:
        at_least("episodes", self, fold=0)


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig(SplitConfig, Policy):
    """Choice of the novel classes, and rules by which training episodes are drawn from the others."""

    shots: int = 1
    """K, the support images of an episode."""
    draw: Draw = "image_class"
    novel_in_training: Literal["background", "drop"] = "background"
    """Training images that also show novel classes: keep them with these as background (PFENet, QGNet, HSNet), or drop
    them (BAM, MSANet, HDMNet, MSHNet), which is worth some points on PASCAL."""
    images_per_class: int | None = None
    """Most images of each class to train on, chosen at random (MSHNet: 750); null: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("episodes", self, shots=1, min_area=0, images_per_class=2)


class EpisodeSource:
    """Endless episodes over the images of `classes` that show enough of them.

    `images` are the eligible images, as manifest indices in the order of their keys; "in order" in a policy means that
    order. `len()` is the number of episodes of one pass: of images, of (image, class) pairs ('every_pair') or of
    (photograph, class) pairs ('round_robin').

    No episode has two crops of one photograph (shards.format.Meta.crop_of): an image of a class is drawn as a
    photograph and then a crop of it that shows the class. In other sets every image is its own photograph.

    without_others: leave out images that show any class that is not in `classes`.
    images_per_class: keep a random choice, by `seed`, of so many images of each class; a class with fewer keeps all.

    Raises ShardError, naming the classes, if one has too few images for a query and `shots` supports.
    """

    def __init__(
        self,
        manifest: Manifest,
        classes: Sequence[int],
        policy: Policy,
        shots: int,
        seed: int,
        *,
        without_others: bool = False,
        images_per_class: int | None = None,
    ):
        self.classes = tuple(sorted(classes))
        self.policy = policy
        self.shots = shots
        self.seed = seed
        pairs = image_class_pairs(manifest)  # [all pairs, 4]
        ours = np.isin(pairs[:, 1], self.classes)
        kept = ours & (pairs[:, 2] >= policy.min_area)
        if without_others:
            kept &= ~np.isin(pairs[:, 0], pairs[~ours, 0])
        eligible = pairs[kept]
        if images_per_class is not None:
            eligible = limit_images(eligible, images_per_class, seed)
        self._image, self._class = eligible[:, 0], eligible[:, 1]  # [pairs]
        self._images_of = {class_id: ClassImages.of(eligible, class_id) for class_id in self.classes}
        self._require_enough(manifest, pairs[ours], without_others)
        first = np.flatnonzero(np.diff(self._image, prepend=-1))  # where each image's pairs begin
        self.images = self._image[first]
        self._bounds = np.append(first, len(self._image))

    def __len__(self) -> int:
        match self.policy.draw:
            case "every_pair":
                return len(self._image)
            case "round_robin":
                return sum(map(len, self._images_of.values()))
            case _:
                return len(self.images)

    def reseeded(self, seed: int) -> "EpisodeSource":
        """Return a source of the same images with the episodes of another seed."""
        other = copy(self)
        other.seed = seed
        return other

    def draw(self, number: int) -> Episode:
        """Return episode `number`, counted from 0 without an end."""
        rng = np.random.default_rng([EPISODE, self.seed, number])
        query = self._query(number, rng)
        class_id = int(self._class[query])
        available = self._images_of[class_id]
        others = len(available) - 1
        if self.policy.repeat_supports:
            chosen = rng.integers(others, size=self.shots)
        else:
            chosen = rng.choice(others, self.shots, replace=False)
        chosen += chosen >= available.place(query)  # skip the query's photograph
        supports = tuple(self._image[available.draw_each(chosen, rng)].tolist())
        return Episode(self.seed, number, class_id, int(self._image[query]), supports)

    def _query(self, number: int, rng: np.random.Generator) -> int:
        """Return the row of the (image, class) pair of the query of episode `number`."""
        turn, place = divmod(number, len(self))
        match self.policy.draw:
            case "class_image":
                return self._draw_image(self.classes[rng.integers(len(self.classes))], rng)
            case "round_robin":
                return self._draw_image(self.classes[number % len(self.classes)], rng)
            case "image_class":
                image = _permutation(len(self), self.seed, turn)[place]
                return int(rng.integers(self._bounds[image], self._bounds[image + 1]))
            case "every_image":
                return int(rng.integers(self._bounds[place], self._bounds[place + 1]))
            case "every_pair":
                return place

    def _draw_image(self, class_id: int, rng: np.random.Generator) -> int:
        """Draw a pair of the class: a photograph, then a crop of it."""
        available = self._images_of[class_id]
        return available.draw(int(rng.integers(len(available))), rng)

    def _require_enough(self, manifest: Manifest, present: np.ndarray, without_others: bool) -> None:
        """Raise ShardError if a class has too few images. present: the pairs of our classes, eligible or not."""
        if not self.classes:
            raise ShardError(
                f"no class of set {manifest.name} is left to draw episodes from: leave fewer of them out, or choose an "
                "episodes.scheme that has base classes"
            )
        need = 2 if self.policy.repeat_supports else self.shots + 1
        short = [class_id for class_id in self.classes if len(self._images_of[class_id]) < need]
        if short:
            counts = [
                f"{manifest.classes[class_id]} has {len(self._images_of[class_id])} of its "
                f"{len(ClassImages.of(present, class_id))} images"
                for class_id in short[:NAMED]
            ]
            counts += [f"{len(short) - NAMED} more classes fall short"] if len(short) > NAMED else []
            apart = " and none of another class, as novel_in_training drop requires" if without_others else ""
            raise ShardError(
                f"{self.shots}-shot episodes need {need} images a class that show min_area = {self.policy.min_area} "
                f"pixels of it{apart}; in set {manifest.name} {', '.join(counts)}: lower min_area or shots, or choose "
                f"another fold{', set or novel_in_training' if without_others else ' or set'}"
            )


def training_source(
    manifest: Manifest, fold: Fold, config: EpisodeConfig, seed: int, held_out: Sequence[int] = ()
) -> EpisodeSource:
    """Return training episodes over the base classes of `fold` without those held out for validation.

    Held-out classes are treated as novel ones: if `config` drops images with novel classes, it drops theirs too.
    Raises ShardError if no class is left or one has too few images.
    """
    return EpisodeSource(
        manifest,
        [class_id for class_id in fold.base if class_id not in held_out],
        config,
        config.shots,
        seed,
        without_others=config.novel_in_training == "drop",
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
    """Return `episodes` episodes of each seed over `classes`, but at most `passes` passes over their images.

    Raises ShardError if a class has too few images.
    """
    source = EpisodeSource(manifest, classes, policy, shots, seed=0)
    count = episodes if passes is None else min(episodes, passes * len(source))
    return [source.draw(number) for source in map(source.reseeded, seeds) for number in range(count)]


@lru_cache(maxsize=2)
def _permutation(images: int, seed: int, turn: int) -> np.ndarray:
    """Return the order of the images [images] in pass `turn`."""
    return np.random.default_rng([PASS, seed, turn]).permutation(images)
