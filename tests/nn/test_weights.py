"""Files of weights: what is recognised, what is refused, and that everything else arrives."""

import pytest
import torch
import torchvision

from fss.errors import WeightsError
from fss.nn.backbones import make_backbone
from fss.nn.exports import ExportHeader, load_export, save_export
from fss.nn.resnet import ENCODERS
from fss.nn.weights import load_backbone, load_base, load_prior, load_start
from tests.support.places import shared


def official_moco(dim: int = 16, queue: int = 32, sides: str = "qk", backbone: str = "resnet18") -> dict:
    """A checkpoint in the layout of facebookresearch/moco."""
    state = {}
    for side in sides:
        torch.manual_seed(ord(side))
        state |= {f"module.encoder_{side}.{n}": t for n, t in ENCODERS[backbone](dim).state_dict().items()}
    keys = torch.nn.functional.normalize(torch.randn(dim, queue), dim=0)
    state |= {"module.queue": keys, "module.queue_ptr": torch.tensor([24])}
    return {"epoch": 200, "arch": backbone, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def skeleton(name: str, stem: str = "torchvision") -> torch.nn.Module:
    with torch.device("meta"):
        return make_backbone(name, stem=stem)


def trunk_of(name: str, stem: str = "torchvision") -> dict[str, torch.Tensor]:
    """A backbone's state with values that no other has."""
    state = skeleton(name, stem).state_dict()
    return {n: torch.rand(t.shape) if t.is_floating_point() else torch.tensor(7) for n, t in state.items()}


def hollow(name: str) -> dict[str, torch.Tensor]:
    """The names and shapes of a network of torchvision, in a file of a few kilobytes."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    return {n: torch.zeros((), dtype=t.dtype).expand(t.shape) for n, t in state.items()}


def in_stages(state: dict[str, torch.Tensor], vgg_slices: list[int] | None = None) -> dict[str, torch.Tensor]:
    """`state` in the names of the few-shot references: a list of the stem, or slices of a VGG's features."""
    stem = ["conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3"]
    out = {}
    for name, tensor in state.items():
        first, rest = name.split(".", 1)
        if vgg_slices:
            place, leaf = rest.split(".")
            layer = max(n for n, start in enumerate(vgg_slices) if start <= int(place))
            name = f"layer{layer}.{int(place) - vgg_slices[layer]}.{leaf}"
        elif first in stem:
            name = f"layer0.{stem.index(first)}.{rest}"
        out[name] = tensor
    heads = {"down_query.0.weight": torch.zeros(4, 8, 1, 1), "cls.3.bias": torch.zeros(2)}
    return out | heads | {"res1.0.weight": torch.zeros(4)}


VGG_BN, VGG = [0, 7, 14, 24, 34], [0, 5, 10, 17, 24]
LAYOUTS = {
    "torchvision": ("resnet18", "torchvision", lambda s: s | {"fc.weight": torch.zeros(9, 512)}),
    "original": ("resnet18", "original", lambda s: s | {"fc.bias": torch.zeros(9)}),
    "half precision": ("resnet18", "torchvision", lambda s: {n: t.half() if t.ndim == 4 else t for n, t in s.items()}),
    "semseg": ("resnet50", "deep", lambda s: s | {"fc.weight": torch.zeros(9, 2048)}),
    "semseg, small": ("resnet18", "deep", lambda s: s),
    "wrapped": ("resnet18", "deep", lambda s: {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in s.items()}}),
    "no counters": ("resnet18", "torchvision", lambda s: {n: t for n, t in s.items() if t.ndim}),
    "stages": ("resnet18", "deep", in_stages),
    "stages, wrapped": (
        "resnet18",
        "deep",
        lambda s: {"state_dict": {f"module.{n}": t for n, t in in_stages(s).items()}},
    ),
    "stages, 7x7": ("resnet18", "torchvision", in_stages),
    "vgg": ("vgg16", "torchvision", lambda s: s | {"classifier.0.weight": torch.zeros(4, 4)}),
    "vgg_bn": ("vgg16_bn", "torchvision", lambda s: s | {"classifier.0.weight": torch.zeros(4, 4)}),
    "vgg, stages": ("vgg16", "torchvision", lambda s: in_stages(s, VGG)),
    "vgg_bn, stages": ("vgg16_bn", "torchvision", lambda s: in_stages(s, VGG_BN)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_of_backbones(tmp_path, layout):
    name, stem, arrange = LAYOUTS[layout]
    state = trunk_of(name, stem)
    torch.save(arrange(state), tmp_path / "weights.pth")
    read = load_backbone(tmp_path / "weights.pth", name, stem)
    skeleton(name, stem).load_state_dict(read, assign=True)
    for tensor_name, tensor in state.items():
        expected = tensor.half().float() if layout == "half precision" and tensor.ndim == 4 else tensor
        expected = torch.tensor(0) if layout == "no counters" and not tensor.ndim else expected
        assert torch.equal(read[tensor_name], expected), tensor_name
        assert read[tensor_name].dtype == tensor.dtype


def test_files_older_than_torch_1_6(tmp_path):
    state = trunk_of("resnet18", "deep")
    torch.save({"state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    read = load_backbone(tmp_path / "old.pth", "resnet18", "deep")
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("sides", ["q", "k", "qk"])
def test_a_backbone_is_mocos_query_encoder_and_a_prior_extractor_its_momentum_encoder(tmp_path, sides):
    content = official_moco(sides=sides)
    torch.save(content, tmp_path / "moco.pth.tar")
    backbone = load_backbone(tmp_path / "moco.pth.tar", "resnet18")
    prior, header = load_prior(tmp_path / "moco.pth.tar")
    assert header == ExportHeader(method="moco", backbone="resnet18")
    for read, side in ((backbone, sides[0]), (prior, sides[-1])):
        skeleton("resnet18").load_state_dict(read, assign=True)
        assert torch.equal(read["conv1.weight"], content["state_dict"][f"module.encoder_{side}.conv1.weight"])


def test_export_of_the_prior_extractor(tmp_path):
    trunk = trunk_of("resnet18")
    written = ExportHeader(method="prior", backbone="resnet18", images_seen=12)
    save_export(tmp_path / "prior.safetensors", trunk, written)
    prior, header = load_prior(tmp_path / "prior.safetensors")
    assert header == written
    for read in (prior, load_backbone(tmp_path / "prior.safetensors", "resnet18")):
        assert all(torch.equal(read[name], tensor) for name, tensor in trunk.items())
    with pytest.raises(WeightsError, match="stem is original: set stem to torchvision"):
        load_backbone(tmp_path / "prior.safetensors", "resnet18", "original")


def test_a_header_says_what_tensors_cannot(tmp_path):
    save_export(tmp_path / "v1.safetensors", trunk_of("resnet18", "original"), ExportHeader(stem="original"))
    assert load_backbone(tmp_path / "v1.safetensors", "resnet18", "original")
    with pytest.raises(WeightsError, match="but stem is torchvision: set stem to original or"):
        load_backbone(tmp_path / "v1.safetensors", "resnet18", "torchvision")


def test_backbones_that_do_not_fit_are_refused_in_a_sentence(tmp_path):
    def refused(state: dict, name: str, stem: str, message: str) -> None:
        torch.save(state, tmp_path / "weights.pth")
        with pytest.raises(WeightsError, match=message) as error:
            load_backbone(tmp_path / "weights.pth", name, stem)
        assert str(error.value).startswith(str(tmp_path / "weights.pth"))

    plain, deep, vgg = trunk_of("resnet18"), trunk_of("resnet18", "deep"), trunk_of("vgg16_bn")
    refused(plain, "resnet50", "torchvision", "a resnet18 .* but backbone is resnet50: set backbone to resnet18")
    refused(vgg, "vgg16", "torchvision", "a vgg16_bn but backbone is vgg16: set backbone to vgg16_bn")
    refused(deep, "resnet18", "torchvision", "deep stem but stem is torchvision: set stem to deep")
    refused(plain, "resnet18", "deep", "7x7 stem but stem is deep: set stem to torchvision or original")
    del deep["bn3.bias"]
    refused(deep, "resnet18", "deep", r"looks like a resnet18 with a deep stem but 1 of its tensors .* bn3\.bias first")
    refused(hollow("vgg11"), "vgg16", "torchvision", "holds no resnet18, .*vgg16_bn")
    refused(hollow("resnet34"), "resnet18", "torchvision", "holds no resnet18")
    refused(hollow("resnet152"), "resnet101", "torchvision", "holds no resnet18")
    refused(hollow("wide_resnet50_2"), "resnet50", "torchvision", "holds no resnet18")
    refused({}, "resnet18", "torchvision", "it holds no tensor")
    with pytest.raises(WeightsError, match="is no file"):
        load_backbone(tmp_path / "absent.pth", "resnet18")


def test_files_of_other_methods_are_refused_in_a_sentence(tmp_path):
    save_export(tmp_path / "qgnet.safetensors", trunk_of("resnet18"), ExportHeader(method="qgnet"))
    with pytest.raises(WeightsError, match="is an export of the method qgnet, not of a backbone: give"):
        load_backbone(tmp_path / "qgnet.safetensors", "resnet18")
    with pytest.raises(WeightsError, match=r"is an export of the method qgnet: give the prior\.safetensors"):
        load_prior(tmp_path / "qgnet.safetensors")
    torch.save(hollow("resnet18"), tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError, match="is no export of a prior extractor: give"):
        load_prior(tmp_path / "resnet18.pth")
    deep = {f"module.encoder_k.{name}": t for name, t in trunk_of("resnet18", "deep").items()}
    torch.save({"state_dict": deep}, tmp_path / "deep.pth.tar")
    with pytest.raises(WeightsError, match="deep stem, but a prior extractor is a ResNet with a 7x7 stem"):
        load_prior(tmp_path / "deep.pth.tar")


@pytest.mark.parametrize(("backbone", "stem"), [("resnet34", "deep"), ("vgg16", "deep"), (None, None)])
def test_base_learners_of_unknown_networks_are_refused_in_a_sentence(tmp_path, backbone, stem):
    header = ExportHeader(method="base", backbone=backbone, stem=stem, classes={"1": "dog"})
    save_export(tmp_path / "base.safetensors", {"x": torch.zeros(1)}, header)
    with pytest.raises(WeightsError, match=f"the backbone {backbone} and the stem {stem}, which this version does not"):
        load_base(tmp_path / "base.safetensors")


def test_original_weights_as_they_are_passed_around():
    path = shared("data/weights/resnet50_imagenet_v1_stride_in_conv1.safetensors")
    state = load_backbone(path, "resnet50", "original")
    skeleton("resnet50", "original").load_state_dict(state, assign=True)
    assert all(t.dtype in (torch.float32, torch.int64) for t in state.values())


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
    trunk = {n: t for n, t in ENCODERS["resnet18"](8).state_dict().items() if not n.startswith("fc.")}
    trunk["conv1.weight"] = trunk["conv1.weight"].to(memory_format=torch.channels_last)
    save_export(tmp_path / "prior.safetensors", trunk, ExportHeader(method="prior", images_seen=12))
    tensors, header = load_export(tmp_path / "prior.safetensors")
    assert header == ExportHeader(method="prior", images_seen=12)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in trunk.items())
    assert load_start(tmp_path / "prior.safetensors", "resnet18").layout == "export of this program"
    assert [p.name for p in tmp_path.iterdir()] == ["prior.safetensors"]


def test_wrong_files_are_refused_in_a_sentence(tmp_path):
    files = {
        "other.pth.tar": (hollow("resnet50"), "backbone is resnet18: .* or set backbone to resnet50"),
        "deep.pth": (trunk_of("resnet18", "deep"), "deep stem but the method's backbone is resnet18: give weights"),
        "resnet34.pth": (hollow("resnet34"), "holds no resnet18"),
        "resnet152.pth": (hollow("resnet152"), "holds no resnet18"),
        "mobilenet.pth": (hollow("mobilenet_v3_small"), "holds no resnet18"),
        "numbers.pth": ({"a": 1}, "holds no table of tensors"),
        "list.pth": ([1, 2], "holds no table of tensors"),
    }
    incomplete = hollow("resnet18")
    del incomplete["layer2.0.bn1.weight"]
    files["incomplete.pth"] = (incomplete, "layer2.0.bn1.weight")
    misshapen = hollow("resnet18")
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
