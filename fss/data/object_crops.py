"""Labelled crops of single objects, cut from shards with masks, for a probe to classify."""

import copy
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from fss.data.augment import Box
from shards.codec import decode_image, decode_mask, image_bytes
from shards.format import ShardError
from shards.read import ShardSet

MARGIN = 0.1  # of the object's longer side, added on every side


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One object, known from the manifest alone."""

    sample: int
    """Index in the shards' manifest."""
    key: str
    label: int
    """Class id."""
    held_out: bool
    """True: classified in a probe. False: votes in it."""


class ObjectCrops:
    """At most one crop a labelled sample: its class of largest area, in a square of `size` pixels.

    The crops, their labels and their halves follow from the manifest, so every rank knows them all without reading a
    pixel. A hash of a sample's key alone decides if it votes or is held out: not its place, the rank or the limit.

    Args:
        limit: most samples to take, evenly spread over the set.

    `rows` are the crops, `names` maps class id to name of the classes that occur, `left_out` names the classes with
    only one sample.
    """

    def __init__(self, shards: ShardSet, *, size: int, limit: int) -> None:
        self.size = size
        self._shards = shards
        samples = [(i, entry) for i, entry in enumerate(shards.manifest.samples) if entry.classes]
        if len(samples) > limit:
            samples = [samples[i * len(samples) // limit] for i in range(limit)]
        labels = [largest(entry.classes) for _, entry in samples]
        counts = Counter(labels)
        names = shards.manifest.classes
        self.names = {label: names.get(label, str(label)) for label in sorted(counts) if counts[label] > 1}
        self.left_out = [names.get(label, str(label)) for label in sorted(counts) if counts[label] == 1]
        self.rows = [
            Crop(sample=i, key=entry.key, label=label, held_out=is_held_out(entry.key))
            for (i, entry), label in zip(samples, labels, strict=True)
            if label in self.names
        ]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def usable(self) -> bool:
        """True if there is a crop to vote and a crop to classify."""
        return len({row.held_out for row in self.rows}) == 2

    def held_out(self, limit: int) -> Self:
        """Return the first `limit` crops of the held-out half, as a set of their own."""
        part = copy.copy(self)
        part.rows = [row for row in self.rows if row.held_out][:limit]
        return part

    def load(self, index: int) -> np.ndarray:
        """Return crop `index` as uint8 RGB [size, size, 3].

        Raises ShardError if the sample cannot be read or its mask is missing, empty or of another size.
        """
        row = self.rows[index]
        members = self._shards.read(row.sample)
        image = decode_image(image_bytes(members))  # [H, W, 3]
        member = f"mask.{row.label}.png"
        if member not in members:
            raise ShardError(f"sample {row.key} has no {member} but the manifest lists it: pack the set again")
        mask = decode_mask(members[member])  # [H, W]
        if mask.shape != image.shape[:2] or not mask.any():
            raise ShardError(
                f"{member} of sample {row.key} is {mask.shape[0]}x{mask.shape[1]} with {np.count_nonzero(mask)} pixels "
                f"set, its image {image.shape[0]}x{image.shape[1]}: pack the set again"
            )
        box = square_around(mask)
        patch = image[box.top : box.top + box.height, box.left : box.left + box.width]
        interpolation = cv2.INTER_AREA if box.height > self.size else cv2.INTER_LINEAR
        return cv2.resize(patch, (self.size, self.size), interpolation=interpolation)


def largest(classes: dict[int, int]) -> int:
    """Return the class id of largest area in {class id: pixels}, the smaller id if two areas are equal."""
    return min(classes, key=lambda label: (-classes[label], label))


def is_held_out(key: str) -> bool:
    """Return True for one half of all sample keys, by a hash that is the same on every machine and in every run."""
    return hashlib.blake2b(key.encode(), digest_size=1).digest()[0] % 2 == 1


def square_around(mask: np.ndarray) -> Box:
    """Return the square around the pixels set in `mask` bool [H, W], with a margin, shifted into the image.

    An object longer than the image's shorter side loses its two ends, because a distorted object would look like
    another.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    side = min(round(max(width, height) * (1 + 2 * MARGIN)), *mask.shape)
    top, left = top + (height - side) // 2, left + (width - side) // 2
    return Box(min(max(top, 0), mask.shape[0] - side), min(max(left, 0), mask.shape[1] - side), side, side)
