"""The prior extractor on several ranks, in groups and in micro-batches: none of them changes what is learned."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fss.collectives import SingleProcess
from fss.errors import ConfigError
from fss.methods.base import StepContext
from fss.methods.prior.shuffle import SeededPermutation, Shuffle
from tests.support.thread_ranks import run_ranks
from tests.support.tiny_prior import (
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


@pytest.mark.parametrize("config", [SMALL, REGION, replace(REGION, local_enqueue="all")], ids=["A", "B", "B-all"])
@pytest.mark.parametrize(("world_size", "n"), [(2, 8), (3, 9), (4, 8)])
def test_ranks_do_not_matter_when_statistics_are_frozen(config, world_size, n):
    batches = [views(n, seed=s) for s in range(6)]  # wraps both queues
    alone = build(config)
    freeze_norm(alone)
    methods = [build(config) for _ in range(world_size)]
    for method in methods:
        freeze_norm(method)
    expected = train(alone, batches, SingleProcess())
    for result in run_ranks(world_size, lambda collectives: train(methods[collectives.rank], batches, collectives)):
        assert_same(result, expected)


@pytest.mark.parametrize("config", [SMALL, REGION], ids=["A", "B"])
def test_one_rank_with_two_groups_has_the_batch_statistics_of_two_ranks(config):
    batches = [views(8, seed=s) for s in range(6)]
    expected = train(build(replace(config, bn_split=2)), batches, SingleProcess())
    methods = [build(config) for _ in range(2)]
    for result in run_ranks(2, lambda collectives: train(methods[collectives.rank], batches, collectives)):
        assert_same(result, expected, running=False)  # two groups pass one after the other, two ranks side by side


def test_sync_statistics_do_not_depend_on_ranks():
    config = replace(SMALL, bn="sync")
    batches = [views(6, seed=s) for s in range(4)]
    expected = train(build(config), batches, SingleProcess())
    methods = [build(config) for _ in range(3)]
    for result in run_ranks(3, lambda collectives: train(methods[collectives.rank], batches, collectives)):
        assert_same(result, expected)


@pytest.mark.parametrize("buffers", ["mean", "rank0"])
def test_ranks_leave_a_step_equal(buffers):
    methods = [build(replace(SMALL, bn_buffers=buffers)) for _ in range(3)]
    batches = [views(6, seed=s) for s in range(3)]
    run_ranks(3, lambda collectives: train(methods[collectives.rank], batches, collectives))
    for method in methods[1:]:
        for side in ("trainable", "non_trainable"):
            for name, value in getattr(methods[0], side).state_dict().items():
                assert torch.equal(value, getattr(method, side).state_dict()[name]), name


def test_a_shuffle_inside_of_a_node_sends_nothing_to_another():
    """And changes nothing where statistics are frozen: every row is back beside its query."""
    config = replace(SMALL, shuffle_among="node")
    batches = [views(8, seed=s) for s in range(2)]
    sent: list[tuple[int, list[int]]] = []

    def rank(collectives):
        start = collectives.start_all_to_all
        collectives.start_all_to_all = lambda x, send, receive: (
            sent.append((collectives.rank, send)) or start(x, send, receive)
        )
        return train(methods[collectives.rank], batches, collectives)

    alone, *methods = [build(config) for _ in range(5)]
    for method in (alone, *methods):
        freeze_norm(method)
    expected = train(alone, batches, SingleProcess())
    for result in run_ranks(4, rank, ranks_per_node=2):
        assert_same(result, expected)
    assert all(sum(send[2:] if rank < 2 else send[:2]) == 0 for rank, send in sent)
    assert any(send[1 - rank % 2 + 2 * (rank // 2)] for rank, send in sent), "something is exchanged"
    with pytest.raises(ConfigError, match="every node has one rank"):
        run_ranks(2, lambda collectives: train(methods[collectives.rank], batches, collectives), 1)


def test_shuffle_gives_keys_other_company_than_queries():
    """With batch norm in training, shuffled keys differ from unshuffled ones; with frozen statistics they do not."""
    keys = {}
    for bn in ("shuffle", "local"):
        for frozen in (False, True):
            method = build(replace(SMALL, bn=bn, bn_split=2))
            if frozen:
                freeze_norm(method)
            method.loss(views(8), StepContext())
            method.after_step(StepContext())
            keys[bn, frozen] = method.non_trainable["global_queue"].keys[:8].clone()
    torch.testing.assert_close(keys["shuffle", True], keys["local", True])
    assert (keys["shuffle", False] - keys["local", False]).abs().max() > 1e-3


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_row_is_back_beside_its_query_after_the_shuffle(world_size):
    n = 4
    rows = torch.arange(world_size * n, dtype=torch.uint8)[:, None].repeat(1, 2)
    permutation = SeededPermutation(3)(5, 1, world_size * n)
    assert (permutation != range(world_size * n)).any()

    def rank(collectives):
        shuffle = Shuffle(permutation, collectives, torch.device("cpu"))
        mine = slice(collectives.rank * n, (collectives.rank + 1) * n)
        there = shuffle.scatter(rows[mine])()
        assert there[:, 0].tolist() == permutation[mine].tolist()
        return shuffle.in_order_of_rows(collectives.all_gather(there)), shuffle.give_back(there)()

    for index, (gathered, own) in enumerate(run_ranks(world_size, rank)):
        assert torch.equal(gathered, rows) and torch.equal(own, rows[index * n : (index + 1) * n])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("local", ["patch", "region"])
def test_with_an_identity_encoder_keys_are_the_inputs(world_size, local):
    """Whatever is moved for the keys' sake must come back: whole images, patches and regions."""
    config = replace(SMALL, dim=12, local=local, local_enqueue="all", regions=1)
    methods = [build(config, Pixels) for _ in range(world_size)]
    batch = views(world_size * 4, regions=1)
    batch.query = batch.key = torch.randn(world_size * 4, 3, 2, 2)
    batch.patch_query = batch.patch_key = torch.randn(world_size * 4, 3, 2, 2)
    batch.region_query = batch.region_key = torch.rand(world_size * 4, 1, 1, 1) + 0.5

    def rank(collectives):
        mine = part(batch, slice(collectives.rank * 4, collectives.rank * 4 + 4))
        _, report = methods[collectives.rank].loss(mine, StepContext(collectives))
        methods[collectives.rank].after_step(StepContext(collectives))
        return report

    for report in run_ranks(world_size, rank):
        assert report["positive/global"] == pytest.approx(1) and report["positive/local"] == pytest.approx(1)
    expected = {"global": batch.key, "local": batch.patch_key if local == "patch" else batch.key}
    for method in methods:
        for name, images in expected.items():
            keys = method.non_trainable[f"{name}_queue"].keys[: world_size * 4]
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
    assert_same(train(halves, batches, SingleProcess(), accumulate=2), train(whole, batches, SingleProcess()))


@pytest.mark.parametrize(("n", "groups"), [(2, 1), (3, 1), (5, 2), (8, 2)])
def test_odd_batches_are_cut_into_groups_of_two_and_more(n, groups):
    method = build(replace(SMALL, local="none"))
    method.loss(views(n), StepContext())[0].backward()
    assert method.trainable["encoder"].body[1].num_batches_tracked == groups


def test_a_batch_of_one_is_refused():
    with pytest.raises(ConfigError, match="at least 2 images"):
        build().loss(views(1), StepContext())
    build(encoder=lambda: TinyEncoder(norm=False)).loss(views(1), StepContext())
