"""One of the prior extractor's two networks, with its projection heads."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss.nn.resnet import Encoder


class Tower(NamedTuple):
    """The trained network or the one that follows it by momentum."""

    encoder: Encoder
    local_head: nn.Module | None
    """The projection head of local contrast; None: the encoder's own."""

    def as_modules(self) -> nn.ModuleDict:
        """Return the modules by their names in checkpoints."""
        heads = {} if self.local_head is None else {"local_head": self.local_head}
        return nn.ModuleDict({"encoder": self.encoder, **heads})

    def embed(
        self, view: dict[str, Tensor], prepare: Callable[[Tensor], Tensor], split: int, *, whole_images: bool
    ) -> dict[str, Tensor]:
        """Compute unit embeddings [n, R, D] for each contrast, 'global' and 'local', float32.

        view: 'image' uint8 [n, 3, S, S], 'regions' [n, R, h, w] and 'patch' uint8 [n, 3, P, P], if they are used.
        prepare: normalizes images. split: the number of groups of images that have batch statistics of their own.
        whole_images: compute 'global' of the images.
        """
        groups = zip(*(x.tensor_split(split) for x in view.values()), strict=True)
        parts = [self._embed_group(dict(zip(view, group, strict=True)), prepare, whole_images) for group in groups]
        whole = {name: torch.cat([p[name] for p in parts]) for name in parts[0]} if split > 1 else parts[0]
        return {name: F.normalize(x.float(), dim=-1) for name, x in whole.items()}

    def _embed_group(
        self, view: dict[str, Tensor], prepare: Callable[[Tensor], Tensor], whole_images: bool
    ) -> dict[str, Tensor]:
        """As `embed`, not normalized, for one group."""
        local_head = self.encoder.project if self.local_head is None else self.local_head
        out = {}
        if "image" in view:
            maps = self.encoder.features(prepare(view["image"]))  # [n, C, h, w]
            if whole_images:
                out["global"] = self.encoder.project(maps.mean((2, 3)))[:, None]  # [n, 1, D]
            if "regions" in view:
                pooled = torch.einsum("nchw,nrhw->nrc", maps, view["regions"].to(maps.dtype))  # sums to 1 a region
                out["local"] = local_head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])  # [n, R, D]
        # Patches last: freed first in the backward pass, their memory serves the views' gradients; the other way round
        # a CPU step spends a fifth of its time on page faults.
        if "patch" in view:
            out["local"] = local_head(self.encoder.features(prepare(view["patch"])).mean((2, 3)))[:, None]  # [n, 1, D]
        return out
