"""Images of different sizes in one tensor, without padding, on their way to the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fss.data.tensor_fields import TensorFields


@dataclass(kw_only=True)
class PackedImages(TensorFields):
    """B images, one behind the other."""

    pixels: Tensor
    """[N] uint8: of each image the rows from top to bottom, RGB."""
    offset: Tensor
    """[B] int64, where each image begins."""
    pitch: Tensor
    """[B] int64, bytes of a row of each."""
    height: int
    """H, of the tallest."""
    width: int
    """W, of the widest."""

    def __len__(self) -> int:
        return len(self.offset)

    def unpack(self, part: slice) -> Tensor:
        """Return b of the images as float32 [b, H, 3, W], each at the upper left; what surrounds it is arbitrary."""
        device, last = self.pixels.device, len(self.pixels) - 1
        kind = torch.int32 if last + self.height * (3 * self.width) < 2**31 else torch.int64  # half the traffic
        row = torch.arange(self.height, device=device)
        start = torch.addcmul(self.offset[part, None], self.pitch[part, None], row).to(kind)  # [b, H], of each row
        column = torch.arange(0, 3 * self.width, 3, device=device, dtype=kind)
        within = torch.arange(3, device=device, dtype=kind)[:, None] + column  # [3, W]
        place = (start[:, :, None, None] + within).clamp_(max=last)  # [b, H, 3, W]
        return self.pixels.index_select(0, place.flatten()).to(torch.float32).view(place.shape)


def pack_images(images: Sequence[np.ndarray]) -> PackedImages:
    """Pack images uint8 [h, w, 3], in a data worker into shared memory."""
    sizes = np.array([image.shape[:2] for image in images])
    ends = np.cumsum(3 * sizes.prod(1))
    pixels = shared_bytes(int(ends[-1]))
    for image, part in zip(images, np.split(pixels.numpy(), ends[:-1]), strict=True):
        part.reshape(image.shape)[:] = image
    return PackedImages(
        pixels=pixels,
        offset=torch.from_numpy(np.concatenate([[0], ends[:-1]])),
        pitch=torch.from_numpy(3 * sizes[:, 1]),
        height=int(sizes[:, 0].max()),
        width=int(sizes[:, 1].max()),
    )


def shared_bytes(count: int) -> Tensor:
    """Return zeros [count] uint8; in a data worker in shared memory, to which they would be copied otherwise."""
    if get_worker_info() is None:
        return torch.zeros(count, dtype=torch.uint8)
    shared: torch.UntypedStorage = torch.UntypedStorage._new_shared(count)
    return torch.empty(0, dtype=torch.uint8).set_(shared)
