"""Types of batches, and the specs by which a method asks for them."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from fss.data.tensor_fields import TensorFields

LocalReading = Literal["none", "patch", "region"]


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """Input of a contrastive method: two augmented views of an image, and local crops or regions of it."""

    size: int = 224
    """Side of both views, pixels."""
    local: LocalReading = "none"
    """'patch': two views of one superpixel's crop. 'region': the same superpixels found in both views."""
    superpixels: Literal["slic", "felzenszwalb"] = "slic"
    """Label map of the shard that defines patches and regions."""
    patch_size: int = 96
    """Side of the two patch views, pixels ('patch')."""
    regions: int = 16
    """Regions drawn per image ('region')."""
    stride: int = 32
    """Pixels per cell of the feature map that regions are pooled from ('region')."""


@dataclass(kw_only=True)
class Batch(TensorFields):
    """Fields that every batch has."""

    keys: list[str]
    """[B] source of each row, in words by which people find it."""
    replaced: list[str]
    """Samples that could not be read and were replaced, 'key: reason' each."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on `device`, in the form that methods take."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory; DataLoader calls this."""
        return self.map(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(kw_only=True)
class ViewBatch(Batch):
    """Two views of each of B images, and the local input that the spec asks for."""

    query: Tensor
    """[B, 3, S, S] uint8, the view that the query encoder sees."""
    key: Tensor
    """[B, 3, S, S] uint8, the view that the momentum encoder sees."""
    patch_query: Tensor | None = None
    """[B, 3, P, P] uint8."""
    patch_key: Tensor | None = None
    """[B, 3, P, P] uint8."""
    region_query: Tensor | None = None
    """[B, R, h, w] float32: the share of region r's pixels in the query view that lies in each cell; sums to 1."""
    region_key: Tensor | None = None
    """[B, R, h, w] float32, the same regions in the key view."""
    region_weight: Tensor | None = None
    """[B, R] float32: 1 / (occurrences of the region in the row), so that a region drawn twice counts once."""
    image: Tensor
    """[B] int64, the image's index in the manifest."""


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """Input of a method that segments a fixed list of classes."""

    size: int = 417
    """Side of the square crops, pixels."""


@dataclass(kw_only=True)
class LabelBatch(Batch):
    """B images and their label maps: 0 background, 1, 2, ... the classes by ascending id, 255 unknown."""

    image: Tensor
    """[B, 3, S, S] uint8 RGB."""
    labels: Tensor
    """[B, S, S] uint8."""


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """Input of a method that is trained on episodes."""

    size: int = 473
    """Side of the square crops of query and supports, pixels."""


@dataclass(kw_only=True)
class EpisodeBatch(Batch):
    """B training episodes of K shots. A mask is 1 on the episode's class, 255 on unknown pixels, 0 elsewhere."""

    query: Tensor
    """[B, 3, S, S] uint8 RGB."""
    query_mask: Tensor
    """[B, S, S] uint8."""
    support: Tensor
    """[B, K, 3, S, S] uint8 RGB."""
    support_mask: Tensor
    """[B, K, S, S] uint8."""
    class_id: Tensor
    """[B] int64, the class of each episode as the manifest numbers it."""


BatchSpec = ViewSpec | LabelSpec | EpisodeSpec
"""Request of a method; its type decides the type of the batches."""
