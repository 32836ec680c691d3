"""Images of each class in a manifest, as arrays of (image, class) pairs."""

from dataclasses import dataclass

import numpy as np

from shards.format import Manifest

SUBSET = 23  # purpose of a random stream; the first word of its seed (see shards/read.py)


def image_class_pairs(manifest: Manifest) -> np.ndarray:
    """Return every (image, class) pair as a row [n, 4]: image, class id, area, photograph.

    The order is that of the images' keys; the crops of a photograph are together, at the position of its key.
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


def limit_images(pairs: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Choose at most `most` rows of each class of `pairs` [n, 4], in their order."""
    kept = np.zeros(len(pairs), bool)
    for class_id in np.unique(pairs[:, 1]):
        rows = np.flatnonzero(pairs[:, 1] == class_id)
        kept[np.random.default_rng([SUBSET, seed, class_id]).permutation(rows)[:most]] = True
    return pairs[kept]


@dataclass(frozen=True)
class ClassImages:
    """Images of one class: its pairs grouped by photograph, of which a part data set has several crops."""

    pairs: np.ndarray
    """[pairs of the class] rows."""
    bounds: np.ndarray
    """[photographs + 1] first pair of each, and the end."""

    @classmethod
    def of(cls, pairs: np.ndarray, class_id: int) -> "ClassImages":
        """Group the pairs of a class among rows [n, 4] as `image_class_pairs` returns them."""
        rows = np.flatnonzero(pairs[:, 1] == class_id)
        return cls(rows, np.append(np.flatnonzero(np.diff(pairs[rows, 3], prepend=-1)), len(rows)))

    def __len__(self) -> int:
        """Return the number of photographs."""
        return len(self.bounds) - 1

    def place(self, pair: int) -> int:
        """Return the number of the photograph, from 0, that `pair` belongs to."""
        return int(np.searchsorted(self.bounds, np.searchsorted(self.pairs, pair), side="right")) - 1

    def draw(self, photograph: int, rng: np.random.Generator) -> int:
        """Draw a pair of a photograph; one that has a single pair takes nothing from `rng`."""
        return int(self.pairs[rng.integers(self.bounds[photograph], self.bounds[photograph + 1])])

    def draw_each(self, photographs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw a pair of each photograph [n]: [n]."""
        return self.pairs[rng.integers(self.bounds[photographs], self.bounds[photographs + 1])]
