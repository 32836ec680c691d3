"""DINOv2: features of image patches, learned without labels (Oquab et al. 2023), through timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fss.nn.backbones.vit import timm_names
from fss.nn.published import fill, read_weights, recognise

DinoName = Literal["vits14", "vitb14", "vitl14", "vitg14"]

PATCH = 14  # side, pixels
NATIVE = 518  # side, pixels, of the images whose positions the weights have

TIMM: dict[DinoName, str] = {
    "vits14": "vit_small_patch14_dinov2",
    "vitb14": "vit_base_patch14_dinov2",
    "vitl14": "vit_large_patch14_dinov2",
    "vitg14": "vit_giant_patch14_dinov2",
}
WIDTHS: dict[int, DinoName] = {384: "vits14", 768: "vitb14", 1024: "vitl14", 1536: "vitg14"}
"""Channels -> name of the official checkpoint."""


class Dino(nn.Module):
    """A ViT of `name` with random weights, which gives patch features before the final norm (`x_prenorm`)."""

    vit: Any
    """timm's VisionTransformer; timm has no types."""

    def __init__(self, name: DinoName) -> None:
        import timm  # here: it takes a second, and most runs do not need it

        super().__init__()
        self.vit = timm.create_model(TIMM[name], num_classes=0, img_size=NATIVE, dynamic_img_size=True)
        self.vit.norm = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Compute the patch features of normalized images, [B, 3, 14 a, 14 b] -> [B, a b, C], row by row.

        At sizes other than 518 px timm interpolates the position embedding: bicubic with antialiasing.
        """
        return self.vit.forward_features(image)[:, 1:]  # without the class token


def load_dino(name: DinoName, path: Path | None) -> Dino:
    """Build the network `name` with the weights in `path`: an official .pth, or a .safetensors of its or timm's names.

    Without a path the weights are random. Raises WeightsError, which names what the file holds, if it does not fit.
    """
    if path is None:
        return Dino(name)
    tensors = timm_names(read_weights(path)[0])
    recognise(path, tensors, _width, WIDTHS, "DINOv2", "method.dino", name)
    network = Dino(name)
    fill(network.vit, tensors, path, f"DINOv2 {name}")
    return network


def _width(tensors: Mapping[str, Tensor]) -> int | None:
    """The channels of a ViT with 14-pixel patches; None for any other file."""
    patches = tensors.get("patch_embed.proj.weight", torch.empty(0))
    return len(patches) if patches.shape[1:] == (3, PATCH, PATCH) and "blocks.0.ls1.gamma" in tensors else None
