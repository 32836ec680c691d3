"""DINOv2's features against its blocks written out, and the files that it may come from."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fss.errors import WeightsError
from fss.nn.dino import Dino, load_dino
from fss.nn.exports import ExportHeader

HEADS, WIDTH, DEPTH = 6, 384, 3  # three blocks are enough to show an error


@pytest.fixture(scope="module")
def network() -> Dino:
    torch.manual_seed(3)
    network = Dino("vits14").eval()
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.3, 1)  # they begin as 1e-5, which would hide all blocks
    return network


def official(network: Dino) -> dict[str, Tensor]:
    """The tensors as the official file holds them."""
    extra = {"mask_token": torch.zeros(1, WIDTH), "norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}
    return network.vit.state_dict() | extra


def by_hand(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """The patch tokens behind the last block, [B, h w, C], at the size of the position embedding."""
    x = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + state["pos_embed"]
    for i in range(DEPTH):

        def get(name, i=i):
            return state[f"blocks.{i}.{name}"]

        y = F.layer_norm(x, (WIDTH,), get("norm1.weight"), get("norm1.bias"), 1e-6)
        q, k, v = F.linear(y, get("attn.qkv.weight"), get("attn.qkv.bias")).unflatten(2, (3, HEADS, -1)).unbind(2)
        heads = [
            ((q[:, :, h] @ k[:, :, h].mT) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v[:, :, h] for h in range(HEADS)
        ]
        y = F.linear(torch.cat(heads, -1), get("attn.proj.weight"), get("attn.proj.bias"))
        x = x + get("ls1.gamma") * y
        y = F.layer_norm(x, (WIDTH,), get("norm2.weight"), get("norm2.bias"), 1e-6)
        y = F.linear(F.gelu(F.linear(y, get("mlp.fc1.weight"), get("mlp.fc1.bias"))), get("mlp.fc2.weight"))
        x = x + get("ls2.gamma") * (y + get("mlp.fc2.bias"))
    return x[:, 1:]


@torch.inference_mode()
def test_patch_tokens_before_the_final_norm(network):
    shallow = copy.deepcopy(network)
    shallow.vit.blocks = shallow.vit.blocks[:DEPTH]
    image = torch.randn(1, 3, 518, 518)
    expected = by_hand(network.vit.state_dict(), image)
    torch.testing.assert_close(shallow(image), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_any_multiple_of_14(network):
    assert network(torch.randn(2, 3, 70, 42)).shape == (2, 15, WIDTH)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_official_files_load(network, tmp_path, suffix):
    path = tmp_path / f"dinov2_vits14_pretrain.{suffix}"
    state = official(network)
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    loaded = load_dino("vits14", path)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_giant_has_its_official_names_renamed(monkeypatch, tmp_path):
    """vitg14's gated MLP is called w12 and w3 there; its shapes are those of timm's."""
    with torch.device("meta"):
        giant = Dino("vitg14")
    shapes = {name: tensor.shape for name, tensor in giant.vit.state_dict().items()}
    assert shapes["blocks.39.mlp.fc1.weight"] == (8192, 1536) and shapes["blocks.39.mlp.fc2.weight"] == (1536, 4096)
    file = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): torch.empty(shape, device="meta")
        for name, shape in shapes.items()
    }
    monkeypatch.setattr("fss.nn.dino.read_weights", lambda path: (file, ExportHeader()))
    monkeypatch.setattr("fss.nn.dino.Dino", lambda name: giant)
    assert load_dino("vitg14", tmp_path / "giant.pth") is giant


def test_files_that_do_not_fit_are_refused(network, tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(WeightsError, match=r"weights.pth is no file"):
        load_dino("vits14", path)
    torch.save(official(network), path)
    with pytest.raises(WeightsError, match=r"holds the weights of DINOv2 vits14 but method.dino is vitl14: set"):
        load_dino("vitl14", path)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"holds no DINOv2 \(it holds conv1.weight"):
        load_dino("vits14", path)
    state = official(network)
    torch.save(state | {"register_tokens": torch.zeros(1, 4, WIDTH)}, path)
    with pytest.raises(WeightsError, match=r"1 of its tensors are missing, unknown .* register_tokens"):
        load_dino("vits14", path)
    path.write_bytes(b"no file of tensors")
    with pytest.raises(WeightsError, match="cannot be read as a file of tensors"):
        load_dino("vits14", path)
    torch.save({"model": state}, path)
    with pytest.raises(WeightsError, match="holds no table of tensors"):
        load_dino("vits14", path)
