"""Labelled images as batches of augmented images and label maps of some classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fss.data.batch import LabelBatch, LabelSpec
from fss.data.dataset import DataConfig, first_readable
from fss.data.paired_transforms import AugmentConfig, augment
from fss.data.transforms import flat_labels, require_same_size
from fss.errors import ConfigError
from shards.codec import decode_image, image_bytes
from shards.format import IGNORE_LABEL, Meta
from shards.read import EpochOrder, ShardSet, sample_context

AUGMENT = 41  # purpose of a random stream; the first word of its seed (see shards/read.py)


class LabelReader:
    """Reader of samples with the label map of `classes`: 1, 2, ... in ascending order of their ids, all others 0.

    If masks overlap, the paint order in the sample's metadata decides which class is visible.
    Raises ConfigError for more classes than a label map of bytes can number.
    """

    def __init__(self, shards: ShardSet, classes: Sequence[int]) -> None:
        if len(classes) >= IGNORE_LABEL:
            raise ConfigError(
                f"episodes.scheme leaves {len(classes)} base classes, a label map numbers {IGNORE_LABEL - 1}: choose "
                "another scheme, or a set with fewer classes"
            )
        self.shards = shards
        self._label = np.zeros(1 << 16, np.uint8)  # class id -> label
        self._label[sorted(classes)] = np.arange(1, len(classes) + 1)

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return image uint8 RGB [H, W, 3] and labels uint8 [H, W], 255 unknown, of sample `index`.

        Raises ShardError with the key of the sample if it cannot be read.
        """
        with sample_context(self.shards.keys[index]):
            members = self.shards.read(index)
            image = decode_image(image_bytes(members))
            flat = flat_labels(members, Meta.decode(members.get("json", b"")))  # [H, W]
            require_same_size(flat, image.shape[:2])
        labels = self._label[flat]
        if f"mask.{IGNORE_LABEL}.png" not in members:  # else 255 is a class
            labels[flat == IGNORE_LABEL] = IGNORE_LABEL
        return image, labels


@dataclass(frozen=True, kw_only=True)
class LabelSources:
    """Images, labels and augmentation of a training on label maps."""

    read: LabelReader
    images: np.ndarray
    """Manifest indices of the training images, ascending."""
    augment: AugmentConfig


class LabelDataset:
    """`BatchSource` for a `LabelSpec`: every training image once an epoch, in the order of `EpochOrder`.

    An image is augmented by draws from (seed, epoch, index). With `min_foreground` 0 the first random crop is taken,
    even if it shows no class; otherwise the first that shows that share of all labelled pixels.
    """

    def __init__(self, spec: LabelSpec, data: LabelSources, config: DataConfig, seed: int) -> None:
        self.size = spec.size
        self.data = data
        self.seed = seed
        shards = data.read.shards
        starts = np.cumsum([0, *shards.counts])
        counts = np.diff(np.searchsorted(data.images, starts))  # training images in each shard
        self.order = EpochOrder(counts[counts > 0].tolist(), seed)

    def batch(self, start: int, stop: int) -> LabelBatch:
        replaced: list[str] = []
        rows = [
            first_readable(self._candidates(position), self._row, replaced, self.data.read.shards)
            for position in self.order.positions(start, stop)
        ]
        keys, images, labels = zip(*rows, strict=True)
        return LabelBatch(
            image=torch.from_numpy(np.stack(images)),
            labels=torch.from_numpy(np.stack(labels)),
            keys=list(keys),
            replaced=replaced,
        )

    def _candidates(self, position: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yield (epoch, place among the training images), then, without an end, those that replace it if unreadable."""
        attempt = 0
        while True:
            yield position
            position = self.order.replacement(position, attempt)
            attempt += 1

    def _row(self, position: tuple[int, int]) -> tuple[str, np.ndarray, np.ndarray]:
        """Return key, image uint8 [3, S, S] and labels uint8 [S, S]."""
        epoch, place = position
        index = int(self.data.images[place])
        image, labels = self.data.read(index)
        rng = np.random.default_rng([AUGMENT, self.seed, epoch, index])
        foreground = labelled if self.data.augment.min_foreground else nothing
        return self.data.read.shards.keys[index], *augment(image, labels, self.size, rng, self.data.augment, foreground)


def labelled(labels: np.ndarray) -> np.ndarray:
    """Mark the pixels of a label map [H, W] that show a class: bool [H, W]."""
    return (labels > 0) & (labels != IGNORE_LABEL)


def nothing(labels: np.ndarray) -> np.ndarray:
    """Mark no pixel of a label map [H, W]: bool [H, W]."""
    return np.zeros(labels.shape, bool)
