"""Vision transformers as backbones (Dosovitskiy et al. 2021), through timm.

One adapter serves every plain ViT: patches of p x p pixels, a position embedding, any class and register tokens. To add
another one, add a row to `LAYOUTS`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fss.nn.backbones.registry import Backbone, BackboneEntry, BatchNorm, SizeRule, Stem, Step

UNUSED = ("mask_token", "norm.", "head.")
"""Beginnings of the names of tensors that are for training, or behind the features that are used."""

RENAMED = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
"""Parts of the names of the official DINOv2 checkpoints -> timm's; in the giant one alone."""


@dataclass(frozen=True, kw_only=True)
class ViTLayout:
    """The shape of a plain ViT."""

    model: str
    """timm's name of it."""
    patch: int
    """Side of a patch, pixels."""
    width: int
    """Channels."""
    depth: int
    """Transformer blocks, at least 3."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments for timm.create_model."""

    @property
    def ends(self) -> tuple[int, int, int]:
        """The numbers of transformer blocks that have run at the end of blocks 2, 3 and 4: thirds of the depth."""
        return self.depth // 3, 2 * self.depth // 3, self.depth

    @property
    def layers(self) -> tuple[int, int, int]:
        """The numbers of transformer blocks in blocks 2, 3 and 4."""
        first, second, third = self.ends
        return first, second - first, third - second


LAYOUTS = {
    "dinov2_vits14": ViTLayout(model="vit_small_patch14_dinov2", patch=14, width=384, depth=12),
    "dinov2_vits14_reg": ViTLayout(model="vit_small_patch14_reg4_dinov2", patch=14, width=384, depth=12),
    "dinov2_vitb14": ViTLayout(model="vit_base_patch14_dinov2", patch=14, width=768, depth=12),
    "dinov2_vitb14_reg": ViTLayout(model="vit_base_patch14_reg4_dinov2", patch=14, width=768, depth=12),
}
"""Name of a backbone -> its shape. The names are those of the official checkpoints."""


class ViTBackbone(Backbone):
    """A plain ViT of timm as a backbone: blocks 2, 3 and 4 are the patch tokens after each third of its layers.

    The maps are those before the final norm, at one position a patch. Block 4 is computed from the patch tokens of
    block 3 alone, so that it is defined for any map of that shape, a masked one too: class and register tokens take
    part in the layers of blocks 2 and 3 and end there. With DINOv2's ViT-S/14 this leaves a mean cosine of 0.99 with
    the patch tokens of the whole network. Stem and batch norm do not apply.
    """

    vit: Any
    """timm's VisionTransformer; timm has no types."""

    def __init__(self, layout: ViTLayout, *, stem: Stem, dilated: bool, bn: BatchNorm):
        import timm  # here: it takes a second, and most runs do not need it

        super().__init__()
        self.vit = timm.create_model(layout.model, num_classes=0, dynamic_img_size=True, **layout.options)
        self.vit.norm = nn.Identity()
        self.ends = layout.ends
        self.channels = dict.fromkeys((2, 3, 4), layout.width)
        self.freeze("frozen")

    def steps(self, image: Tensor, inner: Collection[int] = ()) -> Iterator[Step]:
        vit = self.vit
        patches = vit.patch_embed(image)  # [B, h, w, C]
        size = patches.shape[1:3]
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(patches)))  # [B, prefix + h w, C]
        starts = (0, *self.ends)
        for number, start, end in zip((2, 3), starts, self.ends, strict=False):
            outputs = []
            for block in vit.blocks[start:end]:
                tokens = block(tokens)
                if number in inner:
                    outputs.append(self._map(tokens[:, vit.num_prefix_tokens :], size))
            x = self._map(tokens[:, vit.num_prefix_tokens :], size)
            yield Step(number, x, outputs)
        outputs = list(self._last_third(x))
        yield Step(4, outputs[-1], outputs if 4 in inner else [])

    def _block4(self, block3: Tensor) -> Tensor:
        *_, block4 = self._last_third(block3)
        return block4

    def _last_third(self, block3: Tensor) -> Iterator[Tensor]:
        """The maps after each transformer block of block 4, [B, C, h, w] each."""
        tokens = block3.flatten(2).mT  # [B, h w, C]
        for block in self.vit.blocks[self.ends[1] :]:
            tokens = block(tokens)
            yield self._map(tokens, block3.shape[2:])

    @staticmethod
    def _map(tokens: Tensor, size: torch.Size) -> Tensor:
        """Patch tokens [B, h w, C] as a map [B, C, h, w], channels innermost in memory."""
        return tokens.mT.unflatten(2, size)


def vit_entry(layout: ViTLayout) -> BackboneEntry:
    """The entry of a plain ViT for `BACKBONES`."""
    return BackboneEntry(
        build=partial(ViTBackbone, layout),
        channels=(layout.width,) * 3,
        strides=(layout.patch,) * 3,
        sides=SizeRule(layout.patch),
        layers=layout.layers,
        compared_layers=layout.depth,
        mask_stride=layout.patch,
        own_names=_own_names,
        first_tensor="vit.patch_embed.proj.weight",
    )


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ViT in timm's names, without those that the features do not need.

    state: in the names of timm or of the official DINOv2 checkpoints.
    """
    tensors = {}
    for name, tensor in state.items():
        for official, here in RENAMED.items():
            name = name.replace(official, here)
        if not name.startswith(UNUSED):
            tensors[name] = tensor
    return tensors


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ViT in the names of `ViTBackbone`.

    An official DINOv2 checkpoint with register tokens has a place for the class token in its position embedding, which
    timm adds to that token instead.
    """
    tensors = timm_names(state)
    if "register_tokens" in tensors and "cls_token" in tensors and "pos_embed" in tensors:
        tensors["reg_token"] = tensors.pop("register_tokens")
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    return {f"vit.{name}": tensor for name, tensor in tensors.items()}


VITS = {name: vit_entry(layout) for name, layout in LAYOUTS.items()}
