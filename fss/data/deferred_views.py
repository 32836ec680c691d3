"""Batches whose views are made on the device: decoded images and the draws, from which `to` makes the `ViewBatch`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fss.data.augment import Augmentation, Fast
from fss.data.augment_device import augment
from fss.data.augment_tables import AugmentTables, tabulate
from fss.data.batch import Batch, ViewBatch, ViewSpec
from fss.data.packed_images import PackedImages, pack_images
from fss.data.views import DrawnViews


@dataclass(kw_only=True)
class DeferredViewBatch(Batch):
    """B decoded images and the draws of their views."""

    images: PackedImages
    """Of each image the part that its views show."""
    tables: dict[tuple[str, ...], AugmentTables]
    """Fields of the `ViewBatch`, V of one size -> their draws."""
    image: Tensor
    """[B] int64, the image's index in the manifest."""
    region_query: Tensor | None = None
    """See `ViewBatch`, as for the next two."""
    region_key: Tensor | None = None
    """[B, R, h, w] float32."""
    region_weight: Tensor | None = None
    """[B, R] float32."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed = super().map(change)
        changed.images = self.images.map(change)
        changed.tables = {names: tables.map(change) for names, tables in self.tables.items()}
        return changed

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ViewBatch:
        """Copy images and draws to `device` and make the views there; on CUDA all of it on the current stream."""
        moved = self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        views: dict[str, Tensor] = {}
        for names, made in zip(moved.tables, augment(moved.images, list(moved.tables.values())), strict=True):
            views |= zip(names, made, strict=True)
        return ViewBatch(
            image=moved.image,
            region_query=moved.region_query,
            region_key=moved.region_key,
            region_weight=moved.region_weight,
            keys=self.keys,
            replaced=self.replaced,
            **views,
        )


def defer(samples: Sequence[DrawnViews], spec: ViewSpec, **fields: Any) -> DeferredViewBatch:
    """Collect the images and draws of B samples. fields: image, keys and replaced of the batch."""
    crops, inside = zip(*[shown(sample) for sample in samples], strict=True)
    images = pack_images(crops)
    fields |= {name: torch.from_numpy(np.stack([s.regions[name] for s in samples])) for name in samples[0].regions}
    groups: list[tuple[tuple[str, ...], int]] = [(("query", "key"), spec.size)]
    if spec.local == "patch":
        groups.append((("patch_query", "patch_key"), spec.patch_size))
    return DeferredViewBatch(
        images=images,
        tables={
            names: tabulate([[views[name] for views in inside] for name in names], size, images.height, images.width)
            for names, size in groups
        },
        **fields,
    )


def shown(sample: DrawnViews) -> tuple[np.ndarray, dict[str, Augmentation]]:
    """Cut out the part of an image that its views show: uint8 [h, w, 3], and the views' draws within it.

    Raises TypeError for an image that `Fast` has not decoded.
    """
    if not isinstance(sample.image, Fast):
        raise TypeError(f"the device makes views of images that Fast has decoded, not {type(sample.image).__name__}")
    boxes = [augmentation.box for augmentation in sample.augmentations.values()]
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    bottom, right = max(box.top + box.height for box in boxes), max(box.left + box.width for box in boxes)
    inside = {name: augmentation.moved(-top, -left) for name, augmentation in sample.augmentations.items()}
    return sample.image.pixels[top:bottom, left:right], inside
