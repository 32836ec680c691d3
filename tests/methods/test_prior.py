"""The prior extractor: that ranks, groups and accumulation change nothing, and that both local readings are right."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fss.data.batch import ViewBatch
from fss.errors import ConfigError, WeightsError
from fss.methods import METHODS
from fss.methods.base import Alone
from fss.methods.prior import PriorExtractor
from fss.methods.prior_config import PriorConfig
from fss.methods.shuffle import SeededPermutation, Shuffle
from fss.nn.resnet import BACKBONES
from fss.nn.weights import load_start, save_export
from tests.thread_ranks import run_ranks

SMALL = PriorConfig(dim=8, queue=40, local_queue=24, momentum=0.9, local="patch", regions=3)
REGION = replace(SMALL, local="region")


class TinyEncoder(nn.Module):
    """Three layers: stride 4, with or without batch norm."""

    def __init__(self, norm: bool = True, dim: int = 8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(),
            nn.Conv2d(6, 10, 3, stride=2, padding=1), nn.BatchNorm2d(10) if norm else nn.Identity(), nn.ReLU(),
        )    # fmt: skip
        self.fc = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, dim))

    def features(self, image):
        return self.body(image)

    def project(self, feature):
        return self.fc(feature)


class Pixels(nn.Module):
    """An identity encoder: the embedding of an image is its 12 values."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Identity()
        self.unused = nn.Parameter(torch.zeros(1))

    def features(self, image):
        return image.flatten(1)[:, :, None, None].float()

    def project(self, feature):
        return feature


def build(config=SMALL, encoder=TinyEncoder, **options) -> PriorExtractor:
    torch.manual_seed(0)
    return PriorExtractor(config, encoder=encoder, **options)


def views(n: int, *, size: int = 16, regions: int = 3, seed: int = 0) -> ViewBatch:
    g = torch.Generator().manual_seed(seed)
    cells = size // 4

    def pictures(side: int) -> torch.Tensor:
        return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=g)

    def areas() -> torch.Tensor:
        return torch.rand(n, regions, cells * cells, generator=g).softmax(-1).view(n, regions, cells, cells)

    return ViewBatch(
        query=pictures(size), key=pictures(size), patch_query=pictures(8), patch_key=pictures(8),
        region_query=areas(), region_key=areas(),
        region_weight=torch.tensor([1.0, 0.5, 0.5]).repeat(n, 1) if regions == 3 else torch.ones(n, regions),
        image=torch.arange(n) + 100 * seed, keys=[f"{seed}-{i}" for i in range(n)], replaced=[],
    )    # fmt: skip


def part(batch: ViewBatch, rows: slice) -> ViewBatch:
    piece = batch.map(lambda x: x[rows])
    piece.keys = batch.keys[rows]
    return piece


def freeze_norm(method: PriorExtractor) -> None:
    """Batch norm as in evaluation: statistics no longer depend on who shares the batch."""
    method.trained.eval()
    method.replica.eval()


def train(method: PriorExtractor, batches: list[ViewBatch], peers, *, accumulate: int = 1) -> dict:
    """Plain SGD with gradients averaged over ranks; returns what must not depend on the number of ranks."""
    gradients, losses = [], []
    parameters = list(method.trained.parameters())
    for step, batch in enumerate(batches):
        n = len(batch) // (peers.world * accumulate)
        for micro in range(accumulate):    # the micro-batches of a step, each cut over the ranks
            start = (micro * peers.world + peers.rank) * n
            loss, _ = method.loss(part(batch, slice(start, start + n)), peers, step)
            (loss / accumulate).backward()
            losses.append(peers.sum(loss.detach()) / peers.world)
        with torch.no_grad():
            for parameter in parameters:
                parameter.grad = peers.sum(parameter.grad) / peers.world
                parameter -= 0.05 * parameter.grad
        gradients.append([p.grad for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        method.after_step(peers)
    return {"gradients": gradients, "losses": losses, "state": method.replica.state_dict()}


def assert_same(ours: dict, theirs: dict, *, running: bool = True) -> None:
    for a, b in zip(ours["gradients"], theirs["gradients"], strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=2e-6, rtol=1e-4)
    for name, value in ours["state"].items():
        if running or ("running" not in name and "tracked" not in name):
            torch.testing.assert_close(value, theirs["state"][name], atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("config", [SMALL, REGION, replace(REGION, local_enqueue="all")], ids=["A", "B", "B-all"])
@pytest.mark.parametrize(("world", "n"), [(2, 8), (3, 9), (4, 8)])
def test_ranks_do_not_matter_when_statistics_are_frozen(config, world, n):
    batches = [views(n, seed=s) for s in range(6)]    # wraps both queues
    alone = build(config)
    freeze_norm(alone)
    methods = [build(config) for _ in range(world)]
    for method in methods:
        freeze_norm(method)
    expected = train(alone, batches, Alone())
    for result in run_ranks(world, lambda peers: train(methods[peers.rank], batches, peers)):
        assert_same(result, expected)


@pytest.mark.parametrize("config", [SMALL, REGION], ids=["A", "B"])
def test_one_rank_with_two_groups_has_the_batch_statistics_of_two_ranks(config):
    batches = [views(8, seed=s) for s in range(6)]
    expected = train(build(replace(config, bn_split=2)), batches, Alone())
    methods = [build(config) for _ in range(2)]
    for result in run_ranks(2, lambda peers: train(methods[peers.rank], batches, peers)):
        assert_same(result, expected, running=False)    # two groups pass one after the other, two ranks side by side


def test_sync_statistics_do_not_depend_on_ranks():
    config = replace(SMALL, bn="sync")
    batches = [views(6, seed=s) for s in range(4)]
    expected = train(build(config), batches, Alone())
    methods = [build(config) for _ in range(3)]
    for result in run_ranks(3, lambda peers: train(methods[peers.rank], batches, peers)):
        assert_same(result, expected)


@pytest.mark.parametrize("buffers", ["mean", "rank0"])
def test_ranks_leave_a_step_equal(buffers):
    methods = [build(replace(SMALL, bn_buffers=buffers)) for _ in range(3)]
    batches = [views(6, seed=s) for s in range(3)]
    run_ranks(3, lambda peers: train(methods[peers.rank], batches, peers))
    for method in methods[1:]:
        for side in ("trained", "replica"):
            for name, value in getattr(methods[0], side).state_dict().items():
                assert torch.equal(value, getattr(method, side).state_dict()[name]), name


def test_shuffle_gives_keys_other_company_than_queries():
    """With batch norm in training, shuffled keys differ from unshuffled ones; with frozen statistics they do not."""
    keys = {}
    for bn in ("shuffle", "local"):
        for frozen in (False, True):
            method = build(replace(SMALL, bn=bn, bn_split=2))
            if frozen:
                freeze_norm(method)
            method.loss(views(8), Alone(), 0)
            method.after_step(Alone())
            keys[bn, frozen] = method.replica["global_queue"].keys[:8].clone()
    torch.testing.assert_close(keys["shuffle", True], keys["local", True])
    assert (keys["shuffle", False] - keys["local", False]).abs().max() > 1e-3


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_back_beside_its_query_after_the_shuffle(world):
    n = 4
    rows = torch.arange(world * n, dtype=torch.uint8)[:, None].repeat(1, 2)
    permutation = SeededPermutation(3)(5, 1, world * n)
    assert (permutation != range(world * n)).any()

    def rank(peers):
        shuffle = Shuffle(permutation, peers)
        mine = slice(peers.rank * n, (peers.rank + 1) * n)
        there = shuffle.scatter(rows[mine])
        assert there[:, 0].tolist() == permutation[mine].tolist()
        return shuffle.collect(there)

    for back in run_ranks(world, rank):
        assert torch.equal(back, rows)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("local", ["patch", "region"])
def test_with_an_identity_encoder_keys_are_the_inputs(world, local):
    """Whatever is moved for the keys' sake must come back: whole images, patches and regions."""
    config = replace(SMALL, dim=12, local=local, local_enqueue="all", regions=1)
    methods = [build(config, Pixels) for _ in range(world)]
    batch = views(world * 4, regions=1)
    batch.query = batch.key = torch.randn(world * 4, 3, 2, 2)
    batch.patch_query = batch.patch_key = torch.randn(world * 4, 3, 2, 2)
    batch.region_query = batch.region_key = torch.rand(world * 4, 1, 1, 1) + 0.5

    def rank(peers):
        mine = part(batch, slice(peers.rank * 4, peers.rank * 4 + 4))
        _, report = methods[peers.rank].loss(mine, peers, 0)
        methods[peers.rank].after_step(peers)
        return report

    for report in run_ranks(world, rank):
        assert report["positive/global"] == pytest.approx(1) and report["positive/local"] == pytest.approx(1)
    expected = {"global": batch.key, "local": batch.patch_key if local == "patch" else batch.key}
    for method in methods:
        for name, images in expected.items():
            keys = method.replica[f"{name}_queue"].keys[: world * 4]
            torch.testing.assert_close(keys, F.normalize(images.flatten(1), dim=1))


def test_permutations_are_a_function_of_seed_step_and_micro_batch():
    draw = SeededPermutation(0)
    assert draw(3, 1, 64).tolist() == SeededPermutation(0)(3, 1, 64).tolist()
    places = [(0, 3, 1), (1, 3, 1), (0, 4, 1), (0, 3, 0)]
    assert len({tuple(SeededPermutation(seed)(step, micro, 64)) for seed, step, micro in places}) == 4


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
    loss, report = method.loss(batch, Alone(), 0)
    q, k, ready = method.trained["encoder"], method.replica["encoder"], method.replica["standardise"]
    expected = 0
    for name, ours, theirs in (
        ("global", batch.query, batch.key), ("local", batch.patch_query, batch.patch_key)
    ):    # fmt: skip
        queries, keys = (
            [[net.fc(net.body(ready(image[None])).mean((2, 3)))[0]] for image in images]
            for net, images in ((q, ours), (k, theirs))
        )
        value = by_hand(method, queries, keys, [[1.0]] * 4, method.replica[f"{name}_queue"].keys)
        assert report[f"loss/{name}"].item() == pytest.approx(value, abs=1e-5)
        expected += value
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_reading_b_against_loops():
    method = build(REGION)
    freeze_norm(method)
    batch = views(4)
    loss, report = method.loss(batch, Alone(), 0)
    ready = method.replica["standardise"]

    def pooled(net, image, areas) -> list[torch.Tensor]:
        maps = net.body(ready(image[None]))[0]    # [C, h, w]
        out = []
        for area in areas:
            vector = torch.zeros(maps.shape[0])
            for y in range(maps.shape[1]):
                for x in range(maps.shape[2]):
                    vector = vector + area[y, x] * maps[:, y, x]
            out.append(net.fc(vector))
        return out

    q, k = method.trained["encoder"], method.replica["encoder"]
    queries = [pooled(q, image, areas) for image, areas in zip(batch.query, batch.region_query, strict=True)]
    keys = [pooled(k, image, areas) for image, areas in zip(batch.key, batch.region_key, strict=True)]
    value = by_hand(method, queries, keys, batch.region_weight.tolist(), method.replica["local_queue"].keys)
    assert report["loss/local"].item() == pytest.approx(value, abs=1e-5)
    assert loss.item() == pytest.approx(value + report["loss/global"].item(), abs=1e-5)


@pytest.mark.parametrize(("enqueue", "count"), [("one", 4), ("all", 12)])
def test_regions_enter_the_queue_one_or_all_of_an_image(enqueue, count):
    method = build(replace(REGION, local_enqueue=enqueue))
    freeze_norm(method)
    batch = views(4)
    method.loss(batch, Alone(), 0)
    method.after_step(Alone())
    queue = method.replica["local_queue"]
    assert queue.total == count
    with torch.no_grad():
        net = build(REGION).replica["encoder"].eval()
        maps = net.body(method.replica["standardise"](batch.key))
        every = net.fc(torch.einsum("nchw,nrhw->nrc", maps, batch.region_key))    # [4, 3, 8]
    every = F.normalize(every, dim=-1)
    per_image = count // 4
    for slot in range(count):
        distance = (every[slot // per_image] - queue.keys[slot]).abs().amax(1)
        assert distance.min() < 1e-5, "a key of another image, or none"


def test_accumulation_updates_once_and_enqueues_the_same_keys():
    config = replace(SMALL, momentum=0.5)
    batches = [views(8, seed=s) for s in range(5)]
    whole, halves = build(config), build(config)
    freeze_norm(whole)
    freeze_norm(halves)
    assert_same(train(halves, batches, Alone(), accumulate=2), train(whole, batches, Alone()))


def test_keys_wait_for_the_end_of_the_step():
    method = build()
    before = method.replica["global_queue"].keys.clone()
    first, _ = method.loss(views(4), Alone(), 0)
    assert torch.equal(method.replica["global_queue"].keys, before)
    first.backward()    # nothing it needs has been overwritten
    assert all(p.grad is not None for p in method.trained.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.replica.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_encoder_and_queues_stay_float32(dtype):
    method = build()
    method.trained.to(dtype)
    if dtype == torch.bfloat16:    # the forward of bf16 parameters is autocast's or the wrapper's business
        method.replica["encoder"].to(torch.float32)
    before = [p.clone() for p in method.replica["encoder"].parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method.loss(views(4), Alone(), 0)
    assert loss.dtype == torch.float32
    loss.backward()
    with torch.no_grad():
        for p in method.trained.parameters():
            p += 1
    method.after_step(Alone())
    for slow, was, fast in zip(
        method.replica["encoder"].parameters(), before, method.trained["encoder"].parameters(), strict=True
    ):
        assert slow.dtype == torch.float32
        torch.testing.assert_close(slow, was.lerp(fast.float(), 0.1))
    assert method.replica["global_queue"].keys.dtype == torch.float32


def test_same_image_is_masked_on_request():
    batch = views(4)
    losses = {}
    for mask in (False, True):
        method = build(replace(SMALL, mask_same_image=mask))
        freeze_norm(method)
        for _ in range(6):    # the queue of patches then holds nothing but these four images
            _, report = method.loss(batch, Alone(), 0)
            method.after_step(Alone())
        losses[mask] = report["loss/global"]
    assert losses[True] < losses[False]
    assert method.replica["global_queue"].images[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("n", "groups"), [(2, 1), (3, 1), (5, 2), (8, 2)])
def test_odd_batches_are_cut_into_groups_of_two_and_more(n, groups):
    method = build(replace(SMALL, local="none"))
    method.loss(views(n), Alone(), 0)[0].backward()
    assert method.trained["encoder"].body[1].num_batches_tracked == groups


def test_a_batch_of_one_is_refused():
    with pytest.raises(ConfigError, match="at least 2 images"):
        build().loss(views(1), Alone(), 0)
    build(encoder=lambda: TinyEncoder(norm=False)).loss(views(1), Alone(), 0)


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
    loss, report = method.loss(views(4), Alone(), 0)
    loss.backward()
    assert {name.split("/")[1] for name in report} == losses
    assert loss.item() == pytest.approx(sum(report[f"loss/{name}"].item() for name in losses), abs=1e-5)
    assert all(p.grad is not None for p in method.trained.parameters())
    assert method.consumes.local == method.config.local


def test_state_comes_back_and_the_next_step_is_the_same_bit_for_bit():
    batches = [views(8, seed=s) for s in range(4)]
    first, second = build(), build(replace(SMALL, seed=9))
    train(first, batches[:2], Alone())
    second.trained.load_state_dict(first.trained.state_dict())
    second.replica.load_state_dict(first.replica.state_dict())
    second._permute = first._permute
    a, b = (train(method, batches[2:], Alone()) for method in (first, second))
    assert torch.equal(torch.stack(a["losses"]), torch.stack(b["losses"]))
    assert all(torch.equal(value, b["state"][name]) for name, value in a["state"].items())


def test_frozen_use_is_the_momentum_encoder_in_evaluation():
    method = build()
    train(method, [views(8)], Alone())
    image = views(4, seed=7).query
    state = {name: value.clone() for name, value in method.replica.state_dict().items()}
    features, maps = method.embed(image), method.dense(image)
    assert features.shape == (4, 10) and maps.shape == (4, 10, 4, 4)
    torch.testing.assert_close(method.embed(image[:1]), features[:1])    # no batch statistics
    torch.testing.assert_close(features, F.normalize(maps.mean((2, 3)), dim=1))
    assert all(torch.equal(value, state[name]) for name, value in method.replica.state_dict().items())
    assert method.replica["encoder"].training and not features.requires_grad


def test_export_is_the_momentum_trunk_and_can_be_started_from(tmp_path):
    config = replace(SMALL, backbone="resnet18")
    method = PriorExtractor(config)
    with torch.no_grad():
        for p in method.trained.parameters():
            p += 0.01
    method.after_step(Alone())
    tensors, header = method.export()
    save_export(tmp_path / "prior.safetensors", tensors, header)
    assert header["backbone"] == "resnet18" and header["encoder"] == "momentum"
    assert not any(name.startswith("fc.") for name in tensors)
    slow = method.replica["encoder"].state_dict()
    start = load_start(tmp_path / "prior.safetensors", "resnet18")
    assert all(torch.equal(slow[name], tensor) for name, tensor in start.query.items())

    other = PriorExtractor(config)
    said = other.start_from(tmp_path / "prior.safetensors")
    assert torch.equal(other.trained["encoder"].layer4[1].conv2.weight, slow["layer4.1.conv2.weight"])
    assert torch.equal(other.replica["encoder"].layer4[1].conv2.weight, slow["layer4.1.conv2.weight"])
    assert "starts anew" in said[1]
    with pytest.raises(WeightsError, match="resnet18"):
        with torch.device("meta"):
            wrong = PriorExtractor(replace(config, backbone="resnet50", queue=1, local_queue=1))
        wrong.start_from(tmp_path / "prior.safetensors")


def test_start_from_an_official_checkpoint(tmp_path):
    state = {}
    for side in "qk":
        state |= {f"module.encoder_{side}.{n}": t for n, t in BACKBONES["resnet18"](8).state_dict().items()}
    state |= {"module.queue": F.normalize(torch.randn(8, 40), dim=0), "module.queue_ptr": torch.tensor([24])}
    torch.save({"state_dict": state}, tmp_path / "checkpoint.pth.tar")
    method = PriorExtractor(replace(SMALL, backbone="resnet18", local_head="separate"))
    said = method.start_from(tmp_path / "checkpoint.pth.tar")
    assert "queue of 40 keys is taken over" in said[-1]
    for side, module in (("q", method.trained), ("k", method.replica)):
        for name, value in module["encoder"].state_dict().items():
            assert torch.equal(value, state[f"module.encoder_{side}.{name}"]), name
        assert torch.equal(module["local_head"][2].weight, state[f"module.encoder_{side}.fc.2.weight"])
    queue = method.replica["global_queue"]
    assert torch.equal(queue.keys, state["module.queue"].T)
    assert (queue.pointer, queue.filled) == (24, 40)

    narrow = PriorExtractor(replace(SMALL, backbone="resnet18", dim=4))
    said = narrow.start_from(tmp_path / "checkpoint.pth.tar")
    assert "another shape" in said[1] and "does not fit" in said[2]


def test_briefing_and_warnings():
    method = build(replace(SMALL, local="none", queue=64))
    said = method.briefing(images=48, global_batch=8)
    assert f"{math.log(65):.2f}" in said[0] and "full after 8 steps" in said[0]
    assert "1.3 times the keys of all 48 images" in said[1]
    assert len(method.briefing(images=1000, global_batch=8)) == 1

    queue = method.replica["global_queue"]
    dead, perfect = {"loss/global": math.log(65), "top1/global": 0.0}, {"loss/global": 0.1, "top1/global": 1.0}
    assert "0% full" in method.warnings(1, dead)[0]
    assert method.warnings(2, dead) == []    # once
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
        loss, report = method.loss(batch, Alone(), 0)
    loss.backward()
    method.after_step(Alone())
    assert method.trained["encoder"].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert method.replica["local_queue"].filled == 4
    # Random negatives are orthogonal, so their part is ln K; the own key takes up to 1/T off.
    for name in ("global", "local"):
        assert math.log(65537) - 1 / 0.2 - 0.1 < report[f"loss/{name}"] < math.log(65537) + 1
        assert report[f"fill/{name}"] == 0
