"""Batches of views for contrastive methods, in the order of `shards.read.EpochOrder`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from fss.data.augment import Backend
from fss.data.batch import ViewBatch, ViewSpec
from fss.data.dataset import DataConfig, first_readable
from fss.data.deferred_views import DeferredViewBatch, defer
from fss.data.views import ViewMaker
from fss.errors import at_least
from shards.format import ShardError
from shards.read import EpochOrder, ShardSet, sample_context

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class ViewDataConfig(DataConfig):
    """Source of the images and making of their views."""

    backend: Backend = "cv2"
    """What applies the augmentation: 'cv2' is fast, 'pil' is exactly that of the reference implementation. 'device':
    the data workers only decode, and the device makes the views of 'cv2', up to rounding."""
    window: int = 16
    """Shards that the samples in flight are mixed from: more mix better, fewer are read more sequentially."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("data", self, window=1)


class ViewDataset:
    """`BatchSource` for a `ViewSpec`: every image once an epoch.

    Raises ShardError if the shards lack the superpixels that the spec needs.
    """

    def __init__(self, spec: ViewSpec, shards: ShardSet, config: ViewDataConfig, seed: int) -> None:
        if spec.local != "none" and spec.superpixels not in shards.manifest.superpixels:
            raise ShardError(
                f"method.local {spec.local} needs {spec.superpixels} superpixels, which "
                f"{shards.remote or shards.folder} does not have: pack it with --superpixels {spec.superpixels}, "
                "or set method.local to none"
            )
        self.shards = shards
        self.order = EpochOrder(shards.counts, seed, config.window)
        self.make = ViewMaker(spec, config.backend, seed)

    def batch(self, start: int, stop: int) -> ViewBatch | DeferredViewBatch:
        if self.make.backend == "device":
            drawn, fields = self._samples(start, stop, self.make.draw)
            return defer(drawn, self.make.spec, **fields)
        rows, fields = self._samples(start, stop, self.make)
        fields |= {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        return ViewBatch(**fields)

    def _samples(
        self, start: int, stop: int, make: Callable[[dict[str, bytes], int, int], Made]
    ) -> tuple[list[Made], dict[str, Any]]:
        """What `make` makes of the samples at positions [start, stop), and the other fields of their batch."""

        def made(position: tuple[int, int]) -> tuple[int, Made]:
            epoch, index = position
            with sample_context(self.shards.keys[index]):
                return index, make(self.shards.read(index), epoch, index)

        replaced: list[str] = []
        samples = [
            first_readable(self._candidates(position), made, replaced, self.shards)
            for position in self.order.positions(start, stop)
        ]
        indices = [index for index, _ in samples]
        keys = [self.shards.keys[index] for index in indices]
        return [row for _, row in samples], {"image": torch.tensor(indices), "keys": keys, "replaced": replaced}

    def _candidates(self, position: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Yield (epoch, sample) at a position, then, without an end, those that replace it if it cannot be read."""
        attempt = 0
        while True:
            yield position
            position = self.order.replacement(position, attempt)
            attempt += 1
