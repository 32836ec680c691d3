"""The prior extractor on several ranks, in groups and in micro-batches: none of them changes what is learned."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fss.errors import ConfigError
from fss.methods.base import Alone
from fss.methods.shuffle import SeededPermutation, Shuffle
from tests.methods.tiny_prior import (
    REGION,
    SMALL,
    Pixels,
    TinyEncoder,
    assert_same,
    build,
    freeze_norm,
    part,
    train,
    views,
)
from tests.thread_ranks import run_ranks


@pytest.mark.parametrize("config", [SMALL, REGION, replace(REGION, local_enqueue="all")], ids=["A", "B", "B-all"])
@pytest.mark.parametrize(("world", "n"), [(2, 8), (3, 9), (4, 8)])
def test_ranks_do_not_matter_when_statistics_are_frozen(config, world, n):
    batches = [views(n, seed=s) for s in range(6)]  # wraps both queues
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
        assert_same(result, expected, running=False)  # two groups pass one after the other, two ranks side by side


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


def test_accumulation_updates_once_and_enqueues_the_same_keys():
    config = replace(SMALL, momentum=0.5)
    batches = [views(8, seed=s) for s in range(5)]
    whole, halves = build(config), build(config)
    freeze_norm(whole)
    freeze_norm(halves)
    assert_same(train(halves, batches, Alone(), accumulate=2), train(whole, batches, Alone()))


@pytest.mark.parametrize(("n", "groups"), [(2, 1), (3, 1), (5, 2), (8, 2)])
def test_odd_batches_are_cut_into_groups_of_two_and_more(n, groups):
    method = build(replace(SMALL, local="none"))
    method.loss(views(n), Alone(), 0)[0].backward()
    assert method.trained["encoder"].body[1].num_batches_tracked == groups


def test_a_batch_of_one_is_refused():
    with pytest.raises(ConfigError, match="at least 2 images"):
        build().loss(views(1), Alone(), 0)
    build(encoder=lambda: TinyEncoder(norm=False)).loss(views(1), Alone(), 0)
