"""Files of weights: what is recognised, what is refused, and that everything else arrives."""

import pytest
import torch
import torchvision

from fss.errors import WeightsError
from fss.nn.resnet import BACKBONES, backbone_of
from fss.nn.weights import load_export, load_start, save_export


def official_moco(dim: int = 16, queue: int = 32, sides: str = "qk", backbone: str = "resnet18") -> dict:
    """A checkpoint in the layout of facebookresearch/moco."""
    state = {}
    for side in sides:
        torch.manual_seed(ord(side))
        state |= {f"module.encoder_{side}.{n}": t for n, t in BACKBONES[backbone](dim).state_dict().items()}
    keys = torch.nn.functional.normalize(torch.randn(dim, queue), dim=0)
    state |= {"module.queue": keys, "module.queue_ptr": torch.tensor([24])}
    return {"epoch": 200, "arch": backbone, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_have_torchvisions_names(backbone):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, backbone)().state_dict()
        ours = BACKBONES[backbone](128).state_dict()
    assert {n: t.shape for n, t in ours.items() if not n.startswith("fc.")} == {
        n: t.shape for n, t in theirs.items() if not n.startswith("fc.")
    }
    assert ours["fc.2.weight"].shape[0] == 128
    assert backbone_of(theirs) == backbone_of(ours) == backbone


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_convolutions_compute_what_conv2d_does(layout, bf16):
    ours = BACKBONES["resnet18"](8).layer2[0].downsample[0]    # stride 2
    plain = torch.nn.Conv2d(64, 128, 1, stride=2, bias=False)
    plain.load_state_dict(ours.state_dict())
    image = torch.randn(2, 64, 9, 9).to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        a, b = ours(image), plain(image)
    assert type(ours) is not type(plain) and a.dtype == b.dtype and a.stride() == b.stride()
    torch.testing.assert_close(a, b)
    for out in (a, b):
        out.float().square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("other", ["resnet34", "resnet152", "mobilenet_v3_small"])
def test_other_architectures_are_told_apart(other):
    with torch.device("meta"):
        assert backbone_of(getattr(torchvision.models, other)().state_dict()) is None


def test_official_moco(tmp_path):
    content = official_moco()
    torch.save(content, tmp_path / "moco.pth.tar")
    start = load_start(tmp_path / "moco.pth.tar", "resnet18")
    state = content["state_dict"]
    assert (start.layout, start.pointer) == ("official MoCo checkpoint", 24)
    assert torch.equal(start.query["layer1.0.conv1.weight"], state["module.encoder_q.layer1.0.conv1.weight"])
    assert torch.equal(start.key["fc.2.bias"], state["module.encoder_k.fc.2.bias"])
    assert torch.equal(start.queue, state["module.queue"].T)


@pytest.mark.parametrize("side", ["q", "k"])
def test_official_moco_with_one_encoder(tmp_path, side):
    content = official_moco(sides=side)
    torch.save(content, tmp_path / "half.pth.tar")
    start = load_start(tmp_path / "half.pth.tar", "resnet18")
    assert torch.equal(start.query["conv1.weight"], content["state_dict"][f"module.encoder_{side}.conv1.weight"])


def test_torchvision(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    start = load_start(tmp_path / "resnet18.pth", "resnet18")
    assert start.query.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert not start.key and start.queue is None


def test_export_round_trip(tmp_path):
    trunk = {n: t for n, t in BACKBONES["resnet18"](8).state_dict().items() if not n.startswith("fc.")}
    trunk["conv1.weight"] = trunk["conv1.weight"].to(memory_format=torch.channels_last)
    save_export(tmp_path / "prior.safetensors", trunk, {"method": "prior", "images_seen": "12"})
    tensors, header = load_export(tmp_path / "prior.safetensors")
    assert header == {"method": "prior", "images_seen": "12"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in trunk.items())
    assert load_start(tmp_path / "prior.safetensors", "resnet18").layout == "export of this program"
    assert [p.name for p in tmp_path.iterdir()] == ["prior.safetensors"]


def test_wrong_files_are_refused_in_a_sentence(tmp_path):
    files = {
        "other.pth.tar": (official_moco(backbone="resnet50"), "resnet50 but the method's backbone is resnet18"),
        "resnet34.pth": (torchvision.models.resnet34().state_dict(), "holds no resnet18"),
        "numbers.pth": ({"a": 1}, "holds no table of tensors"),
        "list.pth": ([1, 2], "holds no table of tensors"),
    }
    incomplete = torchvision.models.resnet18().state_dict()
    del incomplete["layer2.0.bn1.weight"]
    files["incomplete.pth"] = (incomplete, "layer2.0.bn1.weight")
    misshapen = torchvision.models.resnet18().state_dict()
    misshapen["layer3.0.conv1.weight"] = torch.zeros(2, 2, 3, 3)
    files["misshapen.pth"] = (misshapen, "layer3.0.conv1.weight")
    for name, (content, message) in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(WeightsError, match=message):
            load_start(tmp_path / name, "resnet18")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 not a zip")
    for name in ("cut.safetensors", "cut.pth", "absent.pth", "absent.safetensors"):
        with pytest.raises(WeightsError, match="cannot be read"):
            load_start(tmp_path / name, "resnet18")


def test_nothing_is_unpickled(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a file of weights ran code",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": Trap()}, tmp_path / "trap.zip.pth")
    for name in ("trap.pth", "trap.zip.pth"):
        with pytest.raises(WeightsError):
            load_start(tmp_path / name, "resnet18")
