"""Masks of points against segment_anything's own decoder, and the files that SAM may come from."""

import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam as PackagesSam
from torch import Tensor

from fss.errors import WeightsError
from fss.nn.sam import Sam, load_sam

SIZE = 128  # pixels; 8 x 8 cells


@pytest.fixture(scope="module")
def network() -> Sam:
    """Random weights, large enough that tokens and cells influence each other."""
    torch.manual_seed(1)
    network = Sam("vit_t")
    for parameter in network.mask_decoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(parameter, std=0.5)
    return network.eval()


def packages(network: Sam, embedding: Tensor, points: Tensor) -> Tensor:
    """The masks of segment_anything, all points at once."""
    encoder, cells = network.prompt_encoder, embedding.shape[-1]
    encoder.image_embedding_size, encoder.input_image_size = (cells, cells), (16 * cells, 16 * cells)
    sparse, dense = encoder((points[:, None].float(), torch.ones(len(points), 1)), None, None)
    logits, _ = network.mask_decoder(
        image_embeddings=embedding,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return logits[:, 0]


@pytest.mark.parametrize("count", [1, 7])
@torch.inference_mode()
def test_masks_are_the_packages(network, count):
    embedding = torch.randn(1, 256, SIZE // 16, SIZE // 16)
    points = torch.randint(0, SIZE, (count, 2))
    expected = packages(network, embedding, points)
    assert expected.std() > 0.1 and (count == 1 or expected.std(0).mean() > 0.01)  # else equality says little
    torch.testing.assert_close(network.masks(embedding, points), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_no_points_no_masks(network):
    embedding = torch.randn(1, 256, 8, 8)
    assert network.masks(embedding, torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 32, 32)


@torch.inference_mode()
def test_bf16_moves_logits_little(network):
    embedding, points = torch.randn(1, 256, 8, 8), torch.randint(0, SIZE, (3, 2))
    exact = network.masks(embedding, points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network.masks(embedding, points)
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean() < 1e-3 * exact.square().mean()


@torch.inference_mode()
def test_what_sam_sees_is_what_the_package_hands_its_encoder(network):
    """A normalized image needs no second normalization."""
    whole = PackagesSam(network.image_encoder, network.prompt_encoder, network.mask_decoder)
    whole.image_encoder.img_size = SIZE
    pixels = torch.randint(0, 256, (3, SIZE, SIZE)).float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ours = (pixels - 255 * mean[:, None, None]) / (255 * std[:, None, None])
    torch.testing.assert_close(ours, whole.preprocess(pixels), rtol=1e-5, atol=1e-5)
    assert network.encode(ours[None]).shape == (1, 256, SIZE // 16, SIZE // 16)


def test_mobilesams_file_loads(network, tmp_path):
    classifier = {"image_encoder.norm_head.weight": torch.zeros(320), "image_encoder.head.bias": torch.zeros(1)}
    for suffix, write in (("pt", torch.save), ("safetensors", save_file)):
        path = tmp_path / f"mobile_sam.{suffix}"
        write(network.state_dict() | classifier, path)
        loaded = load_sam("vit_t", path)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


def test_vit_b_has_the_official_names():
    with torch.device("meta"):
        state = Sam("vit_b").state_dict()
    assert state["image_encoder.blocks.11.attn.rel_pos_h"].shape == (127, 64)
    assert state["mask_decoder.output_hypernetworks_mlps.3.layers.2.bias"].shape == (32,)
    assert state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].shape == (2, 128)


def test_files_that_do_not_fit_are_refused(network, tmp_path):
    path = tmp_path / "sam.pth"
    with pytest.raises(WeightsError, match=r"sam.pth is no file"):
        load_sam("vit_t", path)
    rest = {"mask_decoder.iou_token.weight": torch.zeros(1, 256)}
    torch.save({"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16), **rest}, path)
    with pytest.raises(WeightsError, match=r"weights of SAM vit_b but method.sam is vit_t: set method.sam to vit_b"):
        load_sam("vit_t", path)
    with pytest.raises(WeightsError, match=r"SAM vit_b but method.sam is vit_h"):
        load_sam("vit_h", path)
    torch.save({"blocks.0.ls1.gamma": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="holds no SAM"):
        load_sam("vit_t", path)
    state = network.state_dict()
    del state["image_encoder.neck.0.weight"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"looks like SAM vit_t but 1 of its tensors .* image_encoder.neck.0.weight"):
        load_sam("vit_t", path)
