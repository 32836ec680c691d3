"""Random vision transformers of a few thousand parameters, to be registered as backbones."""

import pytest

from fss.nn.backbones import BACKBONES
from fss.nn.backbones.vit import ViTLayout, vit_entry

TINY = {
    "tiny_vit": ViTLayout(
        model="vit_tiny_patch16_224",
        patch=8,
        width=24,
        depth=6,
        options={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 2},
    ),
    "tiny_vit_registers": ViTLayout(
        model="vit_small_patch14_reg4_dinov2",
        patch=4,
        width=12,
        depth=5,
        options={"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 5, "num_heads": 2, "reg_tokens": 3},
    ),
}
"""Name -> shape: one with a class token, one with register tokens, too."""


def register_tiny_vits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the tiny ViTs for a test, as any program outside the package may do it."""
    for name, layout in TINY.items():
        monkeypatch.setitem(BACKBONES, name, vit_entry(layout))
