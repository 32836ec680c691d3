"""The base learner as a method: its loss by hand, on ranks, its optimizer groups, what it exports and starts from."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fss.collectives import SingleProcess
from fss.data.batch import LabelBatch
from fss.errors import ConfigError, WeightsError
from fss.methods.base import StepContext
from fss.methods.base_learner import BaseLearner, BaseLearnerConfig
from fss.nn.exports import ExportHeader, save_export
from fss.nn.norm import SyncBatchNorm2d, running_statistics
from fss.nn.weights import load_base
from tests.support.thread_ranks import run_ranks

SMALL = BaseLearnerConfig(backbone="resnet18", size=33, dropout=0)
CLASSES = {2: "green", 4: "yellow"}


def learner(config: BaseLearnerConfig = SMALL, classes: dict[int, str] = CLASSES, collectives=None) -> BaseLearner:
    torch.manual_seed(0)
    method = BaseLearner(config)
    method.set_classes(classes, collectives or SingleProcess())
    return method


def batch(images: int, seed: int = 0) -> LabelBatch:
    """Coloured clouds; the unknown share grows from image to image, so that ranks know different numbers of pixels."""
    draw = torch.Generator().manual_seed(seed)
    clouds = F.interpolate(torch.rand(images, 3, 4, 4, generator=draw), (33, 33), mode="bilinear")
    image = (255 * clouds * torch.rand(images, 3, 1, 1, generator=draw)).to(torch.uint8)
    labels = torch.randint(0, 3, (images, 33, 33), generator=draw, dtype=torch.uint8)
    for i in range(images):
        labels[i, : 5 * i] = 255
    return LabelBatch(keys=[str(i) for i in range(images)], replaced=[], image=image, labels=labels)


def test_loss_and_accuracy_by_hand():
    method, data = learner(), batch(3)
    method.trainable.eval()  # so that the network below sees the same statistics
    loss, report = method.loss(data, StepContext())
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        logits = method.trainable["network"]((data.image / 255 - mean) / deviation)
        logits = F.interpolate(logits, size=(33, 33), mode="bilinear", align_corners=True)
    losses, right = [], []
    for i in range(3):
        for y in range(33):
            for x in range(33):
                label = int(data.labels[i, y, x])
                if label != 255:
                    scores = logits[i, :, y, x].double()
                    losses.append(float(scores.logsumexp(0) - scores[label]))
                    right.append(int(scores.argmax()) == label)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert report["accuracy"].item() == pytest.approx(sum(right) / len(right))


def _on_a_rank(collectives, data: LabelBatch, weights: dict) -> dict[str, torch.Tensor]:
    method = learner(collectives=collectives)
    method.trainable.load_state_dict(weights)  # threads share the generator that the method drew its own from
    n = len(data) // collectives.world_size
    part = slice(collectives.rank * n, (collectives.rank + 1) * n)
    mine = LabelBatch(keys=data.keys[part], replaced=[], image=data.image[part], labels=data.labels[part])
    loss, report = method.loss(mine, StepContext(collectives))
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in method.trainable.named_parameters()}
    collectives.mean_(list(gradients.values()))
    scalars = torch.stack([loss.detach(), report["accuracy"]])
    collectives.mean_([scalars])
    statistics = dict(enumerate(running_statistics(method.trainable)))
    return gradients | {"scalars": scalars} | {f"statistic {i}": value for i, value in statistics.items()}


def test_ranks_together_compute_what_one_does():
    """Loss, report, gradients and running statistics; only rounding may differ."""
    data, weights = batch(4), learner().trainable.state_dict()
    alone = _on_a_rank(SingleProcess(), data, weights)
    first, second = run_ranks(2, lambda collectives: _on_a_rank(collectives, data, weights))
    for name, value in alone.items():
        assert first[name].equal(second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-4 * value.abs().max().item(), msg=name)


def test_batch_statistics_are_shared_with_all_ranks():
    collectives = SingleProcess()
    layers = [m for m in learner(collectives=collectives).trainable.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert layers and all(type(m) is SyncBatchNorm2d and m.collectives() is collectives for m in layers)


def test_one_image_has_no_batch_statistics():
    with pytest.raises(ConfigError, match="at least 2 images"):
        learner().loss(batch(1), StepContext())


def test_every_parameter_learns_and_is_in_one_group():
    method = learner(replace(SMALL, backbone_lr=2, head_lr=30))
    method.loss(batch(2), StepContext())[0].backward()
    groups = {group["lr_scale"]: group["params"] for group in method.param_groups()}
    assert groups.keys() == {2, 30}
    assert {id(p) for group in groups.values() for p in group} == {id(p) for p in method.trainable.parameters()}
    assert sum(map(len, groups.values())) == len(list(method.trainable.parameters()))
    network = method.trainable["network"]
    assert {id(p) for p in groups[2]} == {id(p) for p in network.backbone.parameters()}
    assert all(p.grad is not None and p.grad.any() for p in method.trainable.parameters())


def test_before_training_the_loss_is_near_chance():
    method = learner(classes={i: str(i) for i in range(1, 16)})
    assert method.chance_levels()["loss"] == pytest.approx(math.log(16))
    assert method.loss(batch(4), StepContext())[0].item() == pytest.approx(math.log(16), abs=0.7)


def export(path: Path, method: BaseLearner) -> Path:
    tensors, header = method.export()
    save_export(path, tensors, replace(header, scheme="interleaved", fold=0))
    return path


@pytest.mark.parametrize(("backbone", "stem"), [("resnet18", "deep"), ("vgg16_bn", "torchvision")])
def test_what_it_exports_is_read_back(tmp_path, backbone, stem):
    method = learner(replace(SMALL, backbone=backbone, stem=stem))
    tensors, header = load_base(export(tmp_path / "base.safetensors", method))
    assert (header.method, header.backbone, header.stem) == ("base", backbone, stem)
    assert header.class_names == CLASSES and header.fold == 0
    network = copy.deepcopy(method.trainable["network"])
    for p in network.parameters():
        p.data.zero_()
    network.load_state_dict(tensors)
    assert all(t.equal(tensors[name]) for name, t in method.trainable["network"].state_dict().items())


def test_files_that_are_no_base_learner_are_refused(tmp_path):
    method, path = learner(), tmp_path / "file.safetensors"
    tensors, header = method.export()

    def refusal() -> str:
        with pytest.raises(WeightsError) as refused:
            load_base(path)
        assert str(path) in str(refused.value)
        return str(refused.value)

    assert "no file" in refusal()
    save_export(path, tensors, replace(header, method="prior"))
    assert "an export of the method prior" in refusal()
    save_export(path, tensors, ExportHeader())
    assert "no export of a base learner" in refusal()
    save_export(path, {name: t for name, t in tensors.items() if name != "head.classify.bias"}, header)
    assert "head.classify.bias first" in refusal()
    save_export(path, tensors, replace(header, classes={"1": "one"}))
    assert "2 tensors" in refusal()
    save_export(path, tensors, replace(header, stem="deep"))
    assert "of another shape" in refusal()


def test_a_new_run_starts_from_another_fold_without_its_classifier(tmp_path):
    path = export(tmp_path / "base.safetensors", learner())
    same, other = BaseLearner(SMALL), BaseLearner(SMALL)
    torch.manual_seed(5)
    same.set_classes(CLASSES, SingleProcess())
    other.set_classes({1: "red", 2: "green", 4: "yellow"}, SingleProcess())
    fresh = other.trainable["network"].head.classify.weight.clone()
    wanted = learner().trainable.state_dict()
    assert same.init_from(path) == [f"all weights start from {path}"]
    assert all(t.equal(wanted[name]) for name, t in same.trainable.state_dict().items())
    assert "other classes" in other.init_from(path)[0]
    found = other.trainable.state_dict()
    assert found["network.head.classify.weight"].equal(fresh)
    assert all(t.equal(wanted[name]) for name, t in found.items() if "classify" not in name)
    deep = learner(replace(SMALL, stem="deep"))
    with pytest.raises(WeightsError, match="with stem torchvision"):
        deep.init_from(path)


def test_imagenets_weights_are_taken_over(tmp_path):
    state = learner().trainable["network"].backbone.state_dict()
    torch.save({name: t + 1 for name, t in state.items()}, tmp_path / "resnet18.pth")
    method = learner(replace(SMALL, backbone_weights=str(tmp_path / "resnet18.pth")))
    assert all(t.equal(state[name] + 1) for name, t in method.trainable["network"].backbone.state_dict().items())
    assert not method.caveats(0) and learner().caveats(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "method.size is 100"),
        ({"dropout": 1}, "method.dropout is 1"),
        ({"head_lr": -1}, "method.head_lr is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **options)
