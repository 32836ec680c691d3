"""The prior extractor: both local readings against loops, its state, its files, what it says."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fss.collectives import SingleProcess
from fss.errors import ConfigError, WeightsError
from fss.methods import METHODS
from fss.methods.base import StepContext
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from fss.nn.exports import save_export
from fss.nn.resnet import ENCODERS
from fss.nn.weights import load_start
from tests.support.tiny_prior import REGION, SMALL, build, freeze_norm, train, views


def by_hand(method: PriorExtractor, queries, keys, weights, queue) -> torch.Tensor:
    """InfoNCE in plain loops: lists over images of lists of (unnormalised) vectors."""
    total = 0
    for query, key, weight in zip(queries, keys, weights, strict=True):
        inner, norm = 0, 0
        for q, k, w in zip(query, key, weight, strict=True):
            q, k = q / q.norm(), k / k.norm()
            positive = math.exp((q @ k).item() / 0.2)
            negative = sum(math.exp((q @ row).item() / 0.2) for row in queue)
            inner += -w * math.log(positive / (positive + negative))
            norm += w
        total += inner / norm
    return total / len(queries)


def test_reading_a_against_loops():
    method = build()
    freeze_norm(method)
    batch = views(4)
    loss, report = method.loss(batch, StepContext())
    q, k, ready = method.trainable["encoder"], method.non_trainable["encoder"], method.non_trainable["normalize"]
    expected = 0
    for name, ours, theirs in (("global", batch.query, batch.key), ("local", batch.patch_query, batch.patch_key)):
        queries, keys = (
            [[net.fc(net.body(ready(image[None])).mean((2, 3)))[0]] for image in images]
            for net, images in ((q, ours), (k, theirs))
        )
        value = by_hand(method, queries, keys, [[1.0]] * 4, method.non_trainable[f"{name}_queue"].keys)
        assert report[f"loss/{name}"].item() == pytest.approx(value, abs=1e-5)
        expected += value
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_reading_b_against_loops():
    method = build(REGION)
    freeze_norm(method)
    batch = views(4)
    loss, report = method.loss(batch, StepContext())
    ready = method.non_trainable["normalize"]

    def pooled(net, image, areas) -> list[torch.Tensor]:
        maps = net.body(ready(image[None]))[0]  # [C, h, w]
        out = []
        for area in areas:
            vector = torch.zeros(maps.shape[0])
            for y in range(maps.shape[1]):
                for x in range(maps.shape[2]):
                    vector = vector + area[y, x] * maps[:, y, x]
            out.append(net.fc(vector))
        return out

    q, k = method.trainable["encoder"], method.non_trainable["encoder"]
    queries = [pooled(q, image, areas) for image, areas in zip(batch.query, batch.region_query, strict=True)]
    keys = [pooled(k, image, areas) for image, areas in zip(batch.key, batch.region_key, strict=True)]
    value = by_hand(method, queries, keys, batch.region_weight.tolist(), method.non_trainable["local_queue"].keys)
    assert report["loss/local"].item() == pytest.approx(value, abs=1e-5)
    assert loss.item() == pytest.approx(value + report["loss/global"].item(), abs=1e-5)


@pytest.mark.parametrize(("enqueue", "count"), [("one", 4), ("all", 12)])
def test_regions_enter_the_queue_one_or_all_of_an_image(enqueue, count):
    method = build(replace(REGION, local_enqueue=enqueue))
    freeze_norm(method)
    batch = views(4)
    method.loss(batch, StepContext())
    method.after_step(StepContext())
    queue = method.non_trainable["local_queue"]
    assert queue.total == count
    with torch.no_grad():
        net = build(REGION).non_trainable["encoder"].eval()
        maps = net.body(method.non_trainable["normalize"](batch.key))
        every = net.fc(torch.einsum("nchw,nrhw->nrc", maps, batch.region_key))  # [4, 3, 8]
    every = F.normalize(every, dim=-1)
    per_image = count // 4
    for slot in range(count):
        distance = (every[slot // per_image] - queue.keys[slot]).abs().amax(1)
        assert distance.min() < 1e-5, "a key of another image, or none"


def test_each_queue_starts_from_random_vectors_of_its_own():
    """From one seed, the shorter queue would repeat the first vectors of the longer one."""
    parts = build().non_trainable
    similarity = parts["global_queue"].keys @ parts["local_queue"].keys.T  # [40, 24] cosines
    assert similarity.max() < 1 - 1e-4


def test_keys_wait_for_the_end_of_the_step():
    method = build()
    before = method.non_trainable["global_queue"].keys.clone()
    first, _ = method.loss(views(4), StepContext())
    assert torch.equal(method.non_trainable["global_queue"].keys, before)
    first.backward()  # nothing it needs has been overwritten
    assert all(p.grad is not None for p in method.trainable.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.non_trainable.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_encoder_and_queues_stay_float32(dtype):
    method = build()
    method.trainable.to(dtype)
    if dtype == torch.bfloat16:  # the forward of bf16 parameters is autocast's or the wrapper's business
        method.non_trainable["encoder"].to(torch.float32)
    before = [p.clone() for p in method.non_trainable["encoder"].parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.loss(views(4), StepContext())
    assert loss.dtype == torch.float32
    loss.backward()
    with torch.no_grad():
        for p in method.trainable.parameters():
            p += 1
    method.after_step(StepContext())
    for slow, was, fast in zip(
        method.non_trainable["encoder"].parameters(), before, method.trainable["encoder"].parameters(), strict=True
    ):
        assert slow.dtype == torch.float32
        torch.testing.assert_close(slow, was.lerp(fast.float(), 0.1))
    assert method.non_trainable["global_queue"].keys.dtype == torch.float32


def test_same_image_is_masked_on_request():
    batch = views(4)
    losses = {}
    for mask in (False, True):
        method = build(replace(SMALL, mask_same_image=mask))
        freeze_norm(method)
        for _ in range(6):  # the queue of patches then holds nothing but these four images
            _, report = method.loss(batch, StepContext())
            method.after_step(StepContext())
        losses[mask] = report["loss/global"]
    assert losses[True] < losses[False]
    assert method.non_trainable["global_queue"].images[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_loss": False, "local": "none"}, "no loss"),
        ({"global_loss": False, "local_head": "separate"}, "local_head"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"queue": 0}, "queue is 0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(PriorConfig(), **changes)


@pytest.mark.parametrize(
    ("changes", "losses"),
    [
        ({"local": "none"}, {"global"}),
        ({"global_loss": False}, {"local"}),
        ({"global_loss": False, "local": "region"}, {"local"}),
        ({"local_head": "separate"}, {"global", "local"}),
        ({"local": "region", "local_head": "separate"}, {"global", "local"}),
    ],
)
def test_each_loss_can_be_switched_off_and_every_parameter_is_used(changes, losses):
    method = build(replace(SMALL, **changes))
    loss, report = method.loss(views(4), StepContext())
    loss.backward()
    assert {name.split("/")[1] for name in report} == losses
    assert loss.item() == pytest.approx(sum(report[f"loss/{name}"].item() for name in losses), abs=1e-5)
    assert all(p.grad is not None for p in method.trainable.parameters())
    assert method.batch_spec.local == method.config.local


def test_state_comes_back_and_the_next_step_is_the_same_bit_for_bit():
    batches = [views(8, seed=s) for s in range(4)]
    first, second = build(), build(replace(SMALL, seed=9))
    train(first, batches[:2], SingleProcess())
    second.trainable.load_state_dict(first.trainable.state_dict())
    second.non_trainable.load_state_dict(first.non_trainable.state_dict())
    second._permute = first._permute
    a, b = (train(method, batches[2:], SingleProcess()) for method in (first, second))
    assert torch.equal(torch.stack(a["losses"]), torch.stack(b["losses"]))
    assert all(torch.equal(value, b["state"][name]) for name, value in a["state"].items())


def test_frozen_use_is_the_momentum_encoder_in_evaluation():
    method = build()
    train(method, [views(8)], SingleProcess())
    image = views(4, seed=7).query
    state = {name: value.clone() for name, value in method.non_trainable.state_dict().items()}
    features, maps = method.embed(image), method.dense(image)
    assert features.shape == (4, 10) and maps.shape == (4, 10, 4, 4)
    torch.testing.assert_close(method.embed(image[:1]), features[:1])  # no batch statistics
    torch.testing.assert_close(features, F.normalize(maps.mean((2, 3)), dim=1))
    assert all(torch.equal(value, state[name]) for name, value in method.non_trainable.state_dict().items())
    assert method.non_trainable["encoder"].training and not features.requires_grad


def test_export_is_the_momentum_trunk_and_can_be_started_from(tmp_path):
    config = replace(SMALL, backbone="resnet18")
    method = PriorExtractor(config)
    with torch.no_grad():
        for p in method.trainable.parameters():
            p += 0.01
    method.after_step(StepContext())
    tensors, header = method.export()
    save_export(tmp_path / "prior.safetensors", tensors, header)
    assert header.backbone == "resnet18" and header.encoder == "momentum"
    assert not any(name.startswith("fc.") for name in tensors)
    slow = method.non_trainable["encoder"].state_dict()
    start = load_start(tmp_path / "prior.safetensors", "resnet18")
    assert all(torch.equal(slow[name], tensor) for name, tensor in start.query.items())

    other = PriorExtractor(config)
    messages = other.init_from(tmp_path / "prior.safetensors")
    assert torch.equal(other.trainable["encoder"].layer4[1].conv2.weight, slow["layer4.1.conv2.weight"])
    assert torch.equal(other.non_trainable["encoder"].layer4[1].conv2.weight, slow["layer4.1.conv2.weight"])
    assert "starts anew" in messages[1]
    with pytest.raises(WeightsError, match="resnet18"):
        with torch.device("meta"):
            wrong = PriorExtractor(replace(config, backbone="resnet50", queue=1, local_queue=1))
        wrong.init_from(tmp_path / "prior.safetensors")


def test_start_from_an_official_checkpoint(tmp_path):
    state = {}
    for side in "qk":
        state |= {f"module.encoder_{side}.{n}": t for n, t in ENCODERS["resnet18"](8).state_dict().items()}
    state |= {"module.queue": F.normalize(torch.randn(8, 40), dim=0), "module.queue_ptr": torch.tensor([24])}
    torch.save({"state_dict": state}, tmp_path / "checkpoint.pth.tar")
    method = PriorExtractor(replace(SMALL, backbone="resnet18", local_head="separate"))
    messages = method.init_from(tmp_path / "checkpoint.pth.tar")
    assert "queue of 40 keys is taken over" in messages[-1]
    for side, module in (("q", method.trainable), ("k", method.non_trainable)):
        for name, value in module["encoder"].state_dict().items():
            assert torch.equal(value, state[f"module.encoder_{side}.{name}"]), name
        assert torch.equal(module["local_head"][2].weight, state[f"module.encoder_{side}.fc.2.weight"])
    queue = method.non_trainable["global_queue"]
    assert torch.equal(queue.keys, state["module.queue"].T)
    assert (queue.pointer, queue.filled) == (24, 40)

    narrow = PriorExtractor(replace(SMALL, backbone="resnet18", dim=4))
    messages = narrow.init_from(tmp_path / "checkpoint.pth.tar")
    assert "another shape" in messages[1] and "does not fit" in messages[2]


def test_startup_messages_and_warnings():
    method = build(replace(SMALL, local="none", queue=64))
    messages = method.startup_messages(images=48, batch=8)
    assert f"{math.log(65):.2f}" in messages[0] and "full after 8 steps" in messages[0]
    assert "1.3 times the keys of all 48 images" in messages[1]
    assert len(method.startup_messages(images=1000, batch=8)) == 1

    queue = method.non_trainable["global_queue"]
    dead, perfect = {"loss/global": math.log(65), "top1/global": 0.0}, {"loss/global": 0.1, "top1/global": 1.0}
    assert "0% full" in method.warnings(1, dead)[0]
    assert method.warnings(2, dead) == []  # once
    queue.push(torch.randn(64, 8))
    assert method.warnings(9, dead) == []
    assert "too good" in method.warnings(9, perfect)[0]
    queue.push(torch.randn(64, 8))
    assert "nothing is learned" in method.warnings(17, dead)[0]
    queue.push(torch.randn(200, 8))
    assert method.warnings(99, perfect) == []


def test_a_step_at_full_size_on_the_shipped_backbone():
    """K = M = 65536 with ResNet-18, channels last, bf16: shapes, and the loss near what random vectors give."""
    torch.manual_seed(0)
    method = METHODS["prior"](PriorConfig(backbone="resnet18"))
    batch = views(4, size=64, regions=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, report = method.loss(batch, StepContext())
    loss.backward()
    method.after_step(StepContext())
    assert method.trainable["encoder"].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert method.non_trainable["local_queue"].filled == 4
    # Random negatives are orthogonal, so their part is ln K; the own key takes up to 1/T off.
    for name in ("global", "local"):
        assert math.log(65537) - 1 / 0.2 - 0.1 < report[f"loss/{name}"] < math.log(65537) + 1
        assert report[f"fill/{name}"] == 0
