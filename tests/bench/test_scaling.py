"""The arithmetic of bench/scaling.py: what a step sends, what that costs, what of it is hidden."""

import sys
from dataclasses import replace

import pytest

from fss.methods.base import StepContext
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "bench"))

from links import Cluster, Link, network
from scaling import Cost, Job, main
from traffic import GRADIENTS, KEYS, SHUFFLED, Call, CallLog, Pretraining, calls_of, engine_calls, received, views

from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from tests.support.thread_ranks import run_ranks

SMALL = {"backbone": "resnet18", "queue": 64, "local_queue": 64, "view_size": 32, "patch_size": 32}
INSIDE, BETWEEN = Link(hop=1e-6, rate=100e9), Link(hop=10e-6, rate=10e9)
TWO_A_NODE = Cluster(inside=INSIDE, between=BETWEEN, node=2)
REDUCE = Call("sum", "all_reduce", 1_000_000)


def test_what_a_pretraining_step_sends():
    images, views_of, patches = 4, 3 * 32 * 32, 3 * 32 * 32
    calls = Pretraining(**SMALL).calls(images)
    moved = [call for call in calls if call.kind == "all_to_all"]
    keys = 2 * images * 128 * 4  # of images and patches together
    assert [(call.bytes, call.rows) for call in moved] == [
        (images * views_of, images),
        (images * patches, images),
        (keys, images),
    ]
    assert [call.bytes for call in calls if call.what == KEYS] == [keys]
    (gradients,) = (call.bytes for call in calls if call.what == GRADIENTS)
    assert gradients == 4 * sum(p.numel() for p in PriorExtractor(PriorConfig(**SMALL)).trainable.parameters())

    published = Pretraining("published", **SMALL).calls(images)
    gathered = [call for call in published if call.what == SHUFFLED]
    assert [(call.kind, call.bytes) for call in gathered] == [("all_gather", 4 * call.bytes) for call in moved[:2]]
    assert not [call for call in Pretraining("local", **SMALL).calls(images) if call.kind == "all_to_all"]
    # A sum for each of ResNet-18's 20 layers: forward and backward of the queries, forward of the keys; two crop sizes.
    sums = [call for call in Pretraining("sync", **SMALL).calls(images) if call.what == "sums in the loss"]
    assert len(sums) == 20 * 3 * 2


@pytest.mark.parametrize("bn", ["shuffle", "sync"])
def test_the_call_log_records_what_real_ranks_call(bn):
    config = PriorConfig(bn=bn, **SMALL)

    class Recorder(CallLog):
        """A call log that passes the calls on."""

        def __init__(self, collectives) -> None:
            super().__init__(collectives.world_size)
            self.rank, self._collectives = collectives.rank, collectives

        def all_gather(self, x):
            super().all_gather(x)
            return self._collectives.all_gather(x)

        def all_to_all(self, x, send, receive):
            super().all_to_all(x, send, receive)
            return self._collectives.all_to_all(x, send, receive)

        def all_reduce(self, x):
            super().all_reduce(x)
            return self._collectives.all_reduce(x)

        def mean_(self, tensors):
            super().mean_(tensors)
            self._collectives.mean_(tensors)

    def rank(collectives) -> list[Call]:
        method, recorder = PriorExtractor(config), Recorder(collectives)
        loss, _ = method.loss(views(4, config), StepContext(recorder))
        loss.backward()
        method.after_step(StepContext(recorder))
        return recorder.calls + engine_calls(method)

    assert run_ranks(2, rank) == [calls_of(PriorExtractor(config), views(4, config), 2)] * 2


def test_bytes_that_a_rank_receives():
    exchanges = [Call("c", "all_to_all", 40), Call("c", "all_to_all", 4)]
    calls = [Call("a", "all_reduce", 80), Call("b", "all_gather", 10), *exchanges]
    assert received(calls, 4) == {"a": 2 * 3 / 4 * 80, "c": 3 / 4 * 44, "b": 3 * 10}
    assert received(calls, 1) == {"a": 0, "b": 0, "c": 0}


def test_a_ring_and_a_tree():
    assert TWO_A_NODE.seconds(REDUCE, 1) == 0
    assert TWO_A_NODE.seconds(REDUCE, 2) == pytest.approx(2 * 1e-6 + 1e6 / 100e9)
    # 8 nodes of 2: a ring has 30 hops of 10 us, a tree 2 (3 x 10 us + 1 us).
    assert TWO_A_NODE.seconds(REDUCE, 16) == pytest.approx(2 * 31e-6 + 2 * 15 / 16 * 1e6 / 10e9)
    ring = replace(TWO_A_NODE, trees=False)
    assert ring.seconds(REDUCE, 16) == pytest.approx(30 * 10e-6 + 2 * 15 / 16 * 1e6 / 10e9)


def test_a_gather_and_an_exchange():
    gather, exchange = Call("keys", "all_gather", 1000), Call("images", "all_to_all", 1_000_000, rows=3)
    assert TWO_A_NODE.seconds(gather, 4) == pytest.approx(3 * (10e-6 + 1000 / 10e9))
    # Half the bytes of each of the two ranks of a node leave it over one link; three rows reach at most three ranks.
    assert TWO_A_NODE.seconds(exchange, 4) == pytest.approx(3 * 10e-6 + 2 * 0.5e6 / 10e9)
    assert TWO_A_NODE.seconds(exchange, 2) == pytest.approx(1e-6 + 0.5e6 / 100e9)


def test_gradients_hide_behind_the_backward_pass_but_for_the_last_bucket():
    gradients = Call(GRADIENTS, "all_reduce", (1 << 20) + 3 * (25 << 20))  # four buckets
    bucket = TWO_A_NODE.seconds(replace(gradients, bytes=gradients.bytes // 4), 16)
    long = Job("long", 1, Cost(seconds=1, backward=0.5), [gradients])
    assert long.exposed(TWO_A_NODE, 16) == {GRADIENTS: pytest.approx(bucket)}
    short = Job("short", 1, Cost(seconds=0.01, backward=0.5), [gradients])
    assert short.exposed(TWO_A_NODE, 16) == {GRADIENTS: pytest.approx(4 * bucket - 0.005 * 3 / 4)}
    keys = Call(KEYS, "all_gather", 1 << 20)
    before = Job("keys travel first", 1, Cost(seconds=0.01, backward=0.5), [keys, gradients])
    late = 4 * bucket - 0.005 * 3 / 4 + TWO_A_NODE.seconds(keys, 16)
    assert before.exposed(TWO_A_NODE, 16) == {GRADIENTS: pytest.approx(late)}
    assert short.efficiency(TWO_A_NODE, 1) == 1
    assert long.efficiency(TWO_A_NODE, 16) == pytest.approx(1 / (1 + bucket))


def test_images_are_shuffled_behind_the_forward_pass_of_the_queries():
    gradients = Call(GRADIENTS, "all_reduce", 4)
    images = Call(SHUFFLED, "all_to_all", 10_000_000, rows=8)
    took = TWO_A_NODE.seconds(images, 16)
    for seconds, waits in ((4 * took, 0.0), (took, 0.75 * took)):
        job = Job("pretrain", 8, Cost(seconds=seconds, backward=0.5), [images, gradients])
        assert job.exposed(TWO_A_NODE, 16)[SHUFFLED] == pytest.approx(waits)


def test_more_ranks_are_never_more_efficient_and_faster_networks_never_less():
    job = Job("pretrain", 4, Cost(seconds=0.05, backward=0.5), Pretraining(**SMALL).calls(4))
    slow, fast = (
        [job.efficiency(network(gbit, 8), world_size) for world_size in (8, 16, 64, 1024)] for gbit in (10, 400)
    )
    assert slow == sorted(slow, reverse=True) and fast == sorted(fast, reverse=True)
    assert all(one <= other for one, other in zip(slow, fast, strict=True))


def test_an_unknown_job_is_refused_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--step-s", "gfsam=1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "gfsam=1: give one of pretrain, qgnet, msanet, mshnet" in capsys.readouterr().err
