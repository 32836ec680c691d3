"""Training episodes as batches of augmented queries and supports."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fss.data.batch import EpisodeBatch, EpisodeSpec
from fss.data.dataset import ATTEMPTS, DataConfig, first_readable
from fss.data.episodes import Episode, EpisodeSource
from fss.data.paired_transforms import AugmentConfig, augment
from fss.data.transforms import read_labelled
from shards.format import ShardError
from shards.read import ShardSet

AUGMENT = 31  # purpose of a random stream; the first word of its seed (see shards/read.py)
REPLACEMENTS = 1 << 48  # episodes from this number on replace those that cannot be read


@dataclass(frozen=True, kw_only=True)
class EpisodeSources:
    """Images, episodes and augmentation of a training on episodes."""

    shards: ShardSet
    source: EpisodeSource
    augment: AugmentConfig


class EpisodeDataset:
    """`BatchSource` for an `EpisodeSpec`: position p has episode p of the source.

    The query and each support are augmented by draws from (seed, episode number, place in the episode).
    """

    def __init__(self, spec: EpisodeSpec, data: EpisodeSources, config: DataConfig, seed: int) -> None:
        self.size = spec.size
        self.data = data
        self.seed = seed

    def batch(self, start: int, stop: int) -> EpisodeBatch:
        replaced: list[str] = []
        rows = [
            first_readable(self._candidates(position), self._row, replaced, self.data.shards)
            for position in range(start, stop)
        ]
        episodes, images, masks = zip(*rows, strict=True)
        image, mask = (torch.from_numpy(np.stack(arrays)) for arrays in (images, masks))  # [B, 1 + K, (3,) S, S]
        return EpisodeBatch(
            query=image[:, 0],
            query_mask=mask[:, 0],
            support=image[:, 1:],
            support_mask=mask[:, 1:],
            class_id=torch.tensor([episode.class_id for episode in episodes]),
            keys=[self._name(episode) for episode in episodes],
            replaced=replaced,
        )

    def _candidates(self, position: int) -> Iterator[Episode]:
        """Yield the episode at a position, then those that replace it if it cannot be read."""
        yield self.data.source.draw(position)
        for attempt in range(1, ATTEMPTS):
            yield self.data.source.draw(REPLACEMENTS + position * ATTEMPTS + attempt)

    def _row(self, episode: Episode) -> tuple[Episode, np.ndarray, np.ndarray]:
        """Return the episode, its images uint8 [1 + K, 3, S, S] (query first) and their masks uint8 [1 + K, S, S]."""
        data, labels = self.data, self.data.source.policy.labels
        indices = (episode.query, *episode.supports)
        images = np.empty((len(indices), 3, self.size, self.size), np.uint8)
        masks = np.empty((len(indices), self.size, self.size), np.uint8)
        for place, index in enumerate(indices):
            image, mask = read_labelled(data.shards, index, episode.class_id, labels)
            if not (mask == 1).any():
                raise ShardError(f"{data.shards.keys[index]}: no pixel of class {episode.class_id} is visible")
            rng = np.random.default_rng([AUGMENT, self.seed, episode.number, place])
            images[place], masks[place] = augment(image, mask, self.size, rng, data.augment)
        return episode, images, masks

    def _name(self, episode: Episode) -> str:
        query, *supports = (self.data.shards.keys[index] for index in (episode.query, *episode.supports))
        return f"{query} < {', '.join(supports)} : {episode.class_id}"
