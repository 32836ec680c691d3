"""What flows from data to methods: the batch types, and the specs by which a method asks for them."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, Self

from torch import Tensor

LocalReading = Literal["none", "patch", "region"]


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """What a contrastive method wants of an image: two augmented views, and local crops or regions of it."""

    size: int = 224
    """Side of both views, pixels."""
    local: LocalReading = "none"
    """'patch': two views of one superpixel's crop. 'region': the same superpixels found in both views."""
    superpixels: Literal["slic", "felzenszwalb"] = "slic"
    """Which label map of the shard the patches and regions come from."""
    patch_size: int = 96
    """Side of the two patch views, pixels ('patch')."""
    regions: int = 16
    """Regions drawn per image ('region')."""
    stride: int = 32
    """Pixels per cell of the feature map that regions are pooled from ('region')."""


@dataclass(kw_only=True)
class Batch:
    """What every batch has in common."""

    keys: list[str]
    """[B] what each row was made from, for people to find it again."""
    replaced: list[str]
    """Samples that could not be read and were replaced, 'key: reason' each."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with `change` applied to every tensor."""
        return type(self)(
            **{
                f.name: change(value) if isinstance(value := getattr(self, f.name), Tensor) else value
                for f in fields(self)
            }
        )

    def to(self, device, non_blocking: bool = False) -> Self:
        """The batch on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory; DataLoader calls this."""
        return self.map(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(kw_only=True)
class ViewBatch(Batch):
    """Two views of each of B images, uint8 RGB [B, 3, S, S], and the local input that the spec asked for."""

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
    """[B, R] float32: 1 / (how often this region stands in the row), so that a region drawn twice counts once."""
    image: Tensor
    """[B] int64, the image's index in the manifest."""


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """What a method that segments classes it knows by name wants of labelled images."""

    size: int = 417
    """Side of the square crops, pixels."""


@dataclass(kw_only=True)
class LabelBatch(Batch):
    """B images and their label maps: 0 background, 1, 2, ... the classes to learn by ascending id, 255 unknown."""

    image: Tensor
    """[B, 3, S, S] uint8 RGB."""
    labels: Tensor
    """[B, S, S] uint8."""


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """What a method that learns from episodes wants of them."""

    size: int = 473
    """Side of the square crops of query and supports, pixels."""


@dataclass(kw_only=True)
class EpisodeBatch(Batch):
    """B training episodes of K shots; a mask is 1 on the episode's class, 0 elsewhere, 255 where nothing is known."""

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
"""What a method asks for; the type decides what its batches are made of."""
