"""What methods over a frozen backbone share: modes are left as they are, and files bring everything along.

QGNet stands for them; what an export must bring is most with its two networks.
"""

from dataclasses import asdict, replace

import pytest
import torch

from fss.errors import ConfigError, WeightsError
from fss.methods import load_method
from fss.methods.qgnet.method import QGNet
from fss.nn.exports import ExportHeader, save_export
from tests.support.made_episodes import episodes, image_by_image
from tests.support.made_qgnet import build


@pytest.mark.parametrize("ablation", [{}, {"heads": True}, {"prior_map": "off"}], ids=str)
def test_an_export_needs_no_other_file(qgnet_config, ablation, tmp_path):
    method = build(replace(qgnet_config, **ablation))
    tensors, header = method.export()
    assert header.config == asdict(method.config)
    gone = {"prior_weights": "/gone", "backbone_weights": "/gone"}
    save_export(tmp_path / "qgnet.safetensors", tensors, replace(header, config=header.config | gone))
    again, read = load_method(tmp_path / "qgnet.safetensors")
    assert read.method == "qgnet"
    batch = episodes(b=1)
    assert torch.equal(image_by_image(again, batch), image_by_image(method, batch))
    assert any("prior extractor" in text for text in again.caveats(10**7)) == (method.config.prior_map != "off")


def test_a_prior_map_cannot_be_switched_on_after_training(qgnet_config):
    tensors, header = build(replace(qgnet_config, prior_map="off")).export()
    header = replace(header, config=header.config | {"prior_map": "on"})
    with pytest.raises(ConfigError, match="prior_map is on but these weights were trained with off"):
        QGNet.restore(tensors, header)


def test_a_warm_start_takes_everything_and_refuses_other_shapes(qgnet_config, tmp_path, prior_file):
    source = build(qgnet_config)
    with torch.no_grad():
        for parameter in source.trainable.parameters():
            parameter.add_(0.01)
    save_export(tmp_path / "qgnet.safetensors", *source.export())
    method = build(qgnet_config)
    assert method.init_from(tmp_path / "qgnet.safetensors")
    assert all(
        torch.equal(a, b) for a, b in zip(method.trainable.parameters(), source.trainable.parameters(), strict=True)
    )
    with pytest.raises(WeightsError, match=r"does not fit: .*shape"):
        build(replace(qgnet_config, dim=8)).init_from(tmp_path / "qgnet.safetensors")
    with pytest.raises(WeightsError, match="holds prior, not qgnet"):
        method.init_from(prior_file)


def test_files_of_other_methods_and_versions_are_refused_in_a_sentence(qgnet_config, tmp_path, prior_file):
    with pytest.raises(WeightsError, match=r"holds prior, which is not evaluated.*qgnet"):
        load_method(prior_file)
    save_export(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, ExportHeader())
    with pytest.raises(WeightsError, match="without the name of a method"):
        load_method(tmp_path / "x.safetensors")
    tensors, header = build(qgnet_config).export()
    header = replace(header, config=header.config | {"unheard_of": 1})
    save_export(tmp_path / "new.safetensors", tensors, header)
    with pytest.raises(WeightsError, match="another version"):
        load_method(tmp_path / "new.safetensors")


def test_evaluation_is_the_same_in_training_mode_and_leaves_the_mode(qgnet_config):
    method = build(replace(qgnet_config, reduction_dropout=0.5, classifier_dropout=0.5, bn="reference"))
    batch = episodes(b=1)
    method.trainable.train()
    method.non_trainable.train()
    first, second = image_by_image(method, batch), image_by_image(method, batch)
    assert torch.equal(first, second)
    assert method.trainable.training and method.non_trainable["backbone"].training
