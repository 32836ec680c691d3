"""Keys of all ranks on their way to the queues, which they enter after the optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fss.methods.prior.shuffle import Shuffle, on_device


@dataclass
class PendingKeys:
    """The keys of one micro-batch, of all ranks."""

    gathered: Callable[[], Tensor]
    """Waits for them: [W n, R, D], the regions of all contrasts in a row, in the order in which they were computed."""
    images: Callable[[], Tensor] | None
    """Waits for the images' indices, [W n] in order of rows; None where queues do not need them."""
    regions: dict[str, int]
    """Contrast -> the number of its regions."""
    shuffle: Shuffle | None
    """The one by which they were computed."""
    draw: Callable[[int], np.ndarray] | None
    """W n -> integers [W n] that choose the one region of each row that enters a queue; None: all of them do."""

    def for_queues(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Select by contrast the rows [N, D] of its queue, in the order of the global batch, and image indices [N]."""
        keys = self.gathered()
        if self.shuffle:
            keys = self.shuffle.in_order_of_rows(keys)
        images = self.images() if self.images else None
        found = {}
        for name, part in zip(self.regions, keys.split(list(self.regions.values()), 1), strict=True):
            rows, r = part.shape[:2]
            if r > 1 and self.draw:
                (chosen,) = on_device(part.device, self.draw(rows) % r)
                part = part[torch.arange(rows, device=part.device), chosen][:, None]
            found[name] = (part.flatten(0, 1), None if images is None else images.repeat_interleave(part.shape[1]))
        return found
