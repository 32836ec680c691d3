"""DINOv2: features of image patches, learned without labels (Oquab et al. 2023), through timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fss.nn.backbones.vit import timm_names
from fss.nn.published import fill, read_weights, recognise

DinoName = Literal["vits14", "vitb14", "vitl14", "vitg14"]

PATCH = 14  # pixels a side
NATIVE = 518  # pixels a side of the images whose positions the weights hold

TIMM: dict[DinoName, str] = {
    "vits14": "vit_small_patch14_dinov2",
    "vitb14": "vit_base_patch14_dinov2",
    "vitl14": "vit_large_patch14_dinov2",
    "vitg14": "vit_giant_patch14_dinov2",
}
WIDTHS: dict[int, DinoName] = {384: "vits14", 768: "vitb14", 1024: "vitl14", 1536: "vitg14"}
"""Channels -> name, as the official checkpoints are called."""


class Dino(nn.Module):
    """A ViT of `name` with random weights: an image's patch features before the final norm (`x_prenorm`)."""

    vit: Any
    """timm's VisionTransformer; timm has no types."""

    def __init__(self, name: DinoName) -> None:
        import timm  # here: it takes a second, and GF-SAM alone needs it

        super().__init__()
        self.vit = timm.create_model(TIMM[name], num_classes=0, img_size=NATIVE, dynamic_img_size=True)
        self.vit.norm = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Standardised images [B, 3, 14 a, 14 b] -> [B, a b, C], row by row.

        At sizes other than 518 the positions are interpolated, as timm does it: bicubic with antialiasing.
        """
        return self.vit.forward_features(image)[:, 1:]  # without the class token


def load_dino(name: DinoName, path: Path | None) -> Dino:
    """The network `name`, of the weights in `path`: an official .pth, or a .safetensors of the same or of timm's names.

    Without a path the weights are random. Raises WeightsError, saying what the file holds, where it does not fit.
    """
    if path is None:
        return Dino(name)
    tensors = timm_names(read_weights(path)[0])
    recognise(path, tensors, _width, WIDTHS, "DINOv2", "method.dino", name)
    network = Dino(name)
    fill(network.vit, tensors, path, f"DINOv2 {name}")
    return network


def _width(tensors: Mapping[str, Tensor]) -> int | None:
    """The channels, of a ViT of 14-pixel patches."""
    patches = tensors.get("patch_embed.proj.weight", torch.empty(0))
    return len(patches) if patches.shape[1:] == (3, PATCH, PATCH) and "blocks.0.ls1.gamma" in tensors else None
