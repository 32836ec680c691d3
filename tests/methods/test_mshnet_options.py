"""MSHNet: the paper's numbers of parameters are met, options are what they say, and exports stand alone."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from fss.errors import ConfigError, WeightsError
from fss.methods import load_method
from fss.methods.base import StepContext
from fss.methods.mshnet import MSHNet, MSHNetConfig
from fss.nn.exports import save_export
from tests.support.made_episodes import episodes, image_by_image
from tests.support.made_mshnet import ALONE, build


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
@pytest.mark.parametrize(("similarities", "millions"), [("both", 29.6), ("cosine", 26.8), ("prototype", 25.9)])
def test_the_paper_has_as_many_learned_parameters(backbone, similarities, millions):
    with torch.device("meta"):
        method = MSHNet(MSHNetConfig(backbone=backbone, similarities=similarities))
    count = sum(p.numel() for p in method.trainable.parameters() if p.requires_grad)
    assert count == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize("similarities", ["both", "cosine", "prototype"])
def test_a_backbone_with_more_layers_adds_what_its_layers_need(similarities):
    """A deeper ResNet has 17 layers more, at block 3: a W of 2 x 1024 numbers and 64 columns of a 1x1 convolution."""
    counts = []
    for backbone in ("resnet50", "resnet101"):
        with torch.device("meta"):
            method = MSHNet(MSHNetConfig(backbone=backbone, similarities=similarities))
        counts.append(sum(p.numel() for p in method.trainable.parameters()))
    names = method.config.names
    assert counts[1] - counts[0] == 17 * (2048 * ("prototype" in names) + 64 * len(names))


@pytest.mark.parametrize("ablation", [{}, *ALONE], ids=str)
def test_an_export_needs_no_other_file(mshnet_config, ablation, tmp_path):
    method = build(replace(mshnet_config, **ablation))
    method.loss(episodes(), StepContext())  # batch norm has seen something
    tensors, header = method.export()
    assert header.config == asdict(method.config)
    header = replace(header, config=header.config | {"backbone_weights": "/gone"})
    save_export(tmp_path / "mshnet.safetensors", tensors, header)
    again, read = load_method(tmp_path / "mshnet.safetensors")
    assert read.method == "mshnet"
    batch = episodes(b=1)
    assert torch.equal(image_by_image(again, batch), image_by_image(method, batch))


def test_a_warm_start_takes_everything_and_refuses_other_shapes(mshnet_config, tmp_path):
    source = build(mshnet_config)
    source.loss(episodes(), StepContext())
    save_export(tmp_path / "mshnet.safetensors", *source.export())
    method = MSHNet(mshnet_config)
    assert method.init_from(tmp_path / "mshnet.safetensors")
    ours, theirs = method.trainable.state_dict(), source.trainable.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for other in ({"width": 8}, {"similarities": "cosine"}):
        with pytest.raises(WeightsError, match=r"does not fit: .*(shape|missing)"):
            build(replace(mshnet_config, **other)).init_from(tmp_path / "mshnet.safetensors")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 30}, "method.width is 30: give a multiple of 4"),
        ({"width": 0}, "method.width is 0: give at least 4"),
        ({"dilations": []}, r"method.dilations is \[\]"),
        ({"dilations": [2, 0]}, r"method.dilations is \[2, 0\]"),
        ({"size": 64}, "method.size is 64"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(wrong, message):
    with pytest.raises(ConfigError, match=message):
        MSHNetConfig(**wrong)


def test_caveats_name_what_is_far_from_the_paper(mshnet_config):
    caveats = " ".join(build(mshnet_config).caveats(1000))
    assert "random weights" in caveats and "method.width is 16" in caveats
    assert not MSHNetConfig(backbone_weights="resnet50.pth").deviations_from_paper()


def test_batch_norm_is_synchronised_everywhere(mshnet_config):
    layers = [layer for layer in build(mshnet_config).trainable.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert layers and all(type(layer) is not nn.BatchNorm2d for layer in layers)
