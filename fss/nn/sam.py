"""Segment Anything (Kirillov et al. 2023): masks of many points of an image that is encoded once.

Networks are those of the package segment_anything; its ViT-T of MobileSAM is fss.nn.tinyvit, its mask decoder runs in
fss.nn.point_decoder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from fss.nn.point_decoder import decode_points
from fss.nn.published import fill, read_weights, recognise
from fss.nn.tinyvit import TinyViT

SamName = Literal["vit_b", "vit_l", "vit_h", "vit_t"]

NATIVE = 1024  # side, pixels, of the images that SAM was trained on
STRIDE = 16  # pixels from one cell of an embedding to the next
WIDTH = 256  # channels of an embedding
WIDTHS: dict[int, SamName] = {768: "vit_b", 1024: "vit_l", 1280: "vit_h", 64: "vit_t"}
"""Channels after the patch embedding -> name of the official checkpoint; vit_t is MobileSAM's."""

UNUSED = ("image_encoder.norm_head.", "image_encoder.head.")
"""Beginnings of the names of tensors of the classifier from which MobileSAM's encoder was made."""


class Sam(nn.Module):
    """SAM of `name` with random weights, for images of side 1024 pixels; vit_t takes any multiple of 16."""

    def __init__(self, name: SamName) -> None:
        super().__init__()
        if name == "vit_t":
            self.image_encoder = TinyViT()
            self.prompt_encoder = PromptEncoder(WIDTH, (NATIVE // STRIDE,) * 2, (NATIVE,) * 2, mask_in_chans=16)
            transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=8, mlp_dim=2048)
            self.mask_decoder = MaskDecoder(transformer_dim=WIDTH, transformer=transformer)
        else:
            whole = sam_model_registry[name]()
            self.image_encoder = whole.image_encoder
            self.prompt_encoder = whole.prompt_encoder
            self.mask_decoder = whole.mask_decoder

    def encode(self, image: Tensor) -> Tensor:
        """Encode images normalized by ImageNet's mean and deviation, [B, 3, S, S] -> [B, 256, S/16, S/16]."""
        if isinstance(self.image_encoder, TinyViT):
            return self.image_encoder(image)
        with image.device:  # where the package's encoder then makes its tables of distances, else on the CPU
            return self.image_encoder(image)

    def masks(self, embedding: Tensor, points: Tensor) -> Tensor:
        """Compute the mask of each point (SAM's first, for unambiguous prompts) as logits [N, S/4, S/4], float32.

        embedding: [1, 256, S/16, S/16] of `encode`. points: [N, 2], x and y in pixels of the image; the centre of a
        pixel is half a pixel further. A pixel belongs to a mask if the logits, resized to S x S, exceed 0 there.
        """
        grid, encoder = tuple(embedding.shape[2:]), self.prompt_encoder
        with torch.autocast(embedding.device.type, enabled=False):  # positions become angles of many periods
            prompts = self._prompts(points, tuple(STRIDE * side for side in grid))
            position = encoder.pe_layer(grid)[None]  # [1, 256, S/16, S/16]
        image = embedding + encoder.no_mask_embed.weight[..., None, None]
        return decode_points(self.mask_decoder, image, position, prompts).float()

    def _prompts(self, points: Tensor, size: tuple[int, ...]) -> Tensor:
        """Embed points [N, 2] in an image of `size` pixels: [N, 2, 256], each point and 'not a point'.

        The same as by the package's encoder, which selects by label and so makes the host wait for the device.
        """
        encoder = self.prompt_encoder
        places = encoder.pe_layer.forward_with_coords(points[:, None].float() + 0.5, size)  # [N, 1, 256]
        padding = encoder.not_a_point_embed.weight.expand(len(points), 1, -1)
        return torch.cat([places + encoder.point_embeddings[1].weight, padding], 1)


def load_sam(name: SamName, path: Path | None) -> Sam:
    """Build SAM of `name` with the weights in `path`: an official .pth, MobileSAM's, or a .safetensors of their names.

    Without a path the weights are random. Raises WeightsError, which names what the file holds, if it does not fit.
    """
    if path is None:
        return Sam(name)
    tensors = {key: t for key, t in read_weights(path)[0].items() if not key.startswith(UNUSED)}
    recognise(path, tensors, _width, WIDTHS, "SAM", "method.sam", name)
    network = Sam(name)
    fill(network, tensors, path, f"SAM {name}")
    return network


def _width(tensors: Mapping[str, Tensor]) -> int | None:
    """The channels of the image encoder's first features; None if the file is no SAM."""
    for patches in ("image_encoder.patch_embed.proj.weight", "image_encoder.patch_embed.seq.2.c.weight"):
        if patches in tensors and "mask_decoder.iou_token.weight" in tensors:
            return len(tensors[patches])
    return None
