"""Batches: the same from any process, every sample once an epoch, replacement of broken samples."""

import gc
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise

import psutil
import pytest
import torch

from fss.data.batch import ViewBatch, ViewSpec
from fss.data.dataset import ATTEMPTS
from fss.data.loader import GRACE, NAMED, BadSamples, load
from fss.data.view_dataset import ViewDataConfig
from fss.errors import ConfigError
from shards.format import ShardError
from shards.read import LostShardError, ShardSet
from tests.support.packed_sets import write_set
from tests.support.places import shared

COUNTS = [9, 2, 14, 1, 6]  # 32 samples
SPEC = ViewSpec(size=16, local="patch", patch_size=8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return ShardSet(write_set(tmp_path_factory.mktemp("set"), COUNTS))


def batches(shards, steps, *, spec=SPEC, batch=8, workers=0, accumulate=1, window=2, backend="cv2", **where):
    config = ViewDataConfig(batch=batch, workers=workers, window=window, backend=backend)
    loader = load(spec, shards, config, seed=5, accumulate=accumulate, **where)
    return list(islice(loader, steps * accumulate))


def joined(batches: list[ViewBatch]) -> dict:
    """All samples of some batches, in their order."""
    tensors = {
        name: torch.cat([getattr(b, name) for b in batches])
        for name in ("image", "query", "key", "patch_query", "patch_key")
    }
    return tensors | {"keys": [key for b in batches for key in b.keys]}


def assert_same(a: dict, b: dict) -> None:
    assert a["keys"] == b["keys"]
    for name in a.keys() - {"keys"}:
        assert torch.equal(a[name], b[name]), name


def test_two_ranks_with_two_workers_see_every_sample_once_an_epoch(shards):
    steps = 8  # two epochs of four steps
    ranks = [batches(shards, steps, workers=2, rank=rank, world_size=2) for rank in range(2)]
    assert [len(b) for rank in ranks for b in rank] == [4] * 2 * steps
    order = [key for step in zip(*ranks, strict=True) for batch in step for key in batch.keys]
    epochs = order[:32], order[32:]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(shards.keys)
    assert epochs[0] != epochs[1]
    # And content: one rank that works alone sees the same views of the same samples in the same order.
    alone = joined(batches(shards, steps))
    assert_same(alone, joined([b for step in zip(*ranks, strict=True) for b in step]))
    assert_same(alone, joined(batches(shards, steps, workers=2)))


def test_accumulation_and_ranks_share_out_the_same_steps(shards):
    whole = joined(batches(shards, 5))
    for world_size, accumulate in [(1, 4), (2, 2), (4, 1)]:
        ranks = [batches(shards, 5, rank=r, world_size=world_size, accumulate=accumulate) for r in range(world_size)]
        shares = [
            ranks[r][step * accumulate + a] for step in range(5) for a in range(accumulate) for r in range(world_size)
        ]
        assert_same(whole, joined(shares))


@pytest.mark.parametrize("start", [1, 3, 4, 11])
def test_start_equals_skipping(shards, start):
    """Mid-epoch, at its end, in a later one; and on another number of ranks."""
    skipped = joined(batches(shards, start + 3)[start:])
    assert_same(joined(batches(shards, 3, start=start)), skipped)
    ranks = [batches(shards, 3, start=start, rank=r, world_size=2, accumulate=2) for r in range(2)]
    assert_same(joined([ranks[r][2 * s + a] for s in range(3) for a in range(2) for r in range(2)]), skipped)


def test_an_epoch_that_does_not_divide_rolls_over(shards):
    order = [key for b in batches(shards, 32, batch=5) for key in b.keys]  # 160 samples: five epochs
    assert all(sorted(order[i : i + 32]) == sorted(shards.keys) for i in range(0, 160, 32))


def test_the_backend_changes_pixels_only_a_little(shards):
    fast, strict = joined(batches(shards, 1)), joined(batches(shards, 1, backend="pil"))
    assert fast["keys"] == strict["keys"]
    assert (fast["query"].float() - strict["query"].float()).abs().mean() < 2


def test_region_batches(shards):
    spec = ViewSpec(size=64, local="region", regions=4, stride=16)
    (batch,) = batches(shards, 1, spec=spec)
    assert batch.region_query.shape == batch.region_key.shape == (8, 4, 4, 4) and batch.region_weight.shape == (8, 4)
    for regions in (batch.region_query, batch.region_key):
        torch.testing.assert_close(regions.sum((2, 3)), torch.ones(8, 4))
    assert batch.patch_query is None and not batch.replaced


@pytest.mark.parametrize(
    "batch, world_size, accumulate, remedy",
    [(30, 4, 2, "24 or 32"), (3, 4, 1, "give 4$"), (257, 1, 2, "256 or 258")],
)
def test_a_batch_that_cannot_be_dealt(shards, batch, world_size, accumulate, remedy):
    with pytest.raises(ConfigError, match=rf"data.batch {batch} .* {world_size} rank.* {accumulate} micro.*{remedy}"):
        batches(shards, 1, batch=batch, world_size=world_size, accumulate=accumulate)


@pytest.mark.parametrize("field, value", [("batch", 0), ("workers", -1), ("bad_fraction", 1.5), ("window", 0)])
def test_values_out_of_range(field, value):
    with pytest.raises(ConfigError, match=f"data.{field} is {value}"):
        ViewDataConfig(**{field: value})


def test_superpixels_that_were_never_packed(tmp_path):
    shards = ShardSet(write_set(tmp_path, [3], superpixels=["felzenszwalb"]))
    with pytest.raises(ShardError, match=r"needs slic superpixels.*pack it with --superpixels slic"):
        batches(shards, 1, batch=2)
    assert len(batches(shards, 1, batch=2, spec=ViewSpec(size=16))) == 1


def broken(index: int, members: dict) -> dict:
    """Four samples of the 32 in the ways in which samples break."""
    members = dict(members)
    if index == 3:
        members["jpg"] = members["jpg"][:400]
    if index == 10:
        members["slic.png"] = members["slic.png"][:40]
    if index == 20:
        del members["slic.png"]
    if index == 30:
        del members["jpg"]
    return members


def test_broken_samples_are_replaced_and_named(tmp_path):
    shards = ShardSet(write_set(tmp_path, COUNTS, broken))
    epoch = batches(shards, 4)
    replaced = sorted(text for b in epoch for text in b.replaced)
    assert {text.split(":")[0] for text in replaced} == {"s0003", "s0010", "s0020", "s0030"}
    assert "s0003: image cannot be decoded" in replaced[0] and "s0020: has no slic superpixels" in " ".join(replaced)
    assert [len(b) for b in epoch] == [8] * 4 and not {"s0003", "s0010", "s0020", "s0030"} & {
        key for b in epoch for key in b.keys
    }
    assert all(shards.find(key) == index for b in epoch for key, index in zip(b.keys, b.image.tolist(), strict=True))
    ranks = [batches(shards, 4, workers=2, rank=r, world_size=2) for r in range(2)]  # the same replacements everywhere
    assert_same(joined(epoch), joined([b for step in zip(*ranks, strict=True) for b in step]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_without_a_readable_sample(tmp_path, workers):
    shards = ShardSet(write_set(tmp_path, [4], lambda _, m: m | {"jpg": b"junk"}))
    before = time.monotonic()
    with pytest.raises(ShardError, match=rf"^{ATTEMPTS} samples in a row cannot be read, .*python -m shards.check"):
        batches(shards, 1, batch=2, workers=workers)
    gc.collect()
    assert (
        time.monotonic() - before < 9
    )  # the worker ends when asked; a DataLoader waits ten seconds for one that hangs


def test_a_shard_that_vanishes_is_not_a_bad_sample(tmp_path):
    shards = ShardSet(write_set(tmp_path, [4, 4]))
    (tmp_path / "toy-000001.tar").unlink()
    with pytest.raises(LostShardError, match=r"toy-000001.tar cannot be opened"):
        batches(shards, 1)


def batch(good: int, *bad: str) -> ViewBatch:
    empty = torch.zeros(good, 3, 1, 1, dtype=torch.uint8)
    return ViewBatch(query=empty, key=empty, image=torch.zeros(good), keys=["k"] * good, replaced=list(bad))


def test_bad_samples_are_named_once():
    bad = BadSamples(0.5)
    assert bad.note(batch(8)) == []
    assert bad.note(batch(8, "a: broken", "b: cut")) == [
        "replaced an unreadable sample, a: broken",
        "replaced an unreadable sample, b: cut",
    ]
    assert bad.note(batch(8, "a: broken")) == []  # the next epoch meets it again


def test_many_bad_samples_are_counted_rather_than_named():
    bad = BadSamples(0.5)
    lines = [line for i in range(200) for line in bad.note(batch(8, f"s{i}: broken"))]
    assert len(lines) == NAMED + 3  # at 32, 64, 128
    assert lines[-1] == "replaced 128 unreadable samples of 1152, 128 different"


@pytest.mark.parametrize("limit, at", [(0, 1), (0.01, GRACE), (0.4, None)])
def test_too_many_bad_samples(limit, at):
    bad = BadSamples(limit)
    for number in range(1, 50):
        if number == at:
            with pytest.raises(ShardError, match=rf"^{at} of {number * 3} samples.*bad_fraction {limit}.*s{at}: cut"):
                bad.note(batch(2, f"s{number}: cut"))
            return
        bad.note(batch(2, f"s{number}: cut"))
    assert at is None


def test_workers_outlive_the_signals_meant_for_the_trainer(shards):
    """A scheduler signals the whole process group; the trainer still needs its next batches to reach a step's end."""
    config = ViewDataConfig(batch=8, workers=2, window=2)
    before = set(psutil.Process().children(recursive=True))
    loader = load(SPEC, shards, config, seed=5)
    next(loader)
    started = set(psutil.Process().children(recursive=True)) - before
    assert len(started) >= 2
    group = (started | {worker.parent() for worker in started}) - {psutil.Process()}  # with the fork server
    pids = [str(p.pid) for p in group]
    for which in ("INT", "USR1", "TERM"):  # sent by another process, as a scheduler would
        subprocess.run(["sh", "-c", f"kill -{which} $@", "-", *pids], check=True)
    keys = [b.keys for b in islice(loader, 12)]
    assert keys == [b.keys for b in batches(shards, 13)[1:]]
    assert all(p.is_running() for p in started)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()  # nothing stays blocked here


TRAINER = """
import os, sys, psutil
from fss.data.batch import ViewSpec
from fss.data.loader import load
from fss.data.view_dataset import ViewDataConfig
from shards.read import ShardSet

if __name__ == "__main__":
    loader = load(ViewSpec(size=16), ShardSet(sys.argv[1]), ViewDataConfig(batch=8, workers=2), seed=0)
    next(loader)
    print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
    os.kill(os.getpid(), 9) if sys.argv[2] == "killed" else 1 / 0
"""


@pytest.mark.parametrize("end, code", [("killed", -9), ("failed", 1)])
def test_workers_end_with_the_trainer(shards, tmp_path, end, code):
    script, out = tmp_path / "trainer.py", tmp_path / "out"
    script.write_text(TRAINER)
    with open(out, "w") as file:
        command = [sys.executable, str(script), str(shards.folder), end]
        assert subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, timeout=60).returncode == code
    pids = [int(pid) for pid in out.read_text().split()]
    assert len(pids) >= 4  # resource tracker, fork server, two workers
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


def test_real_photographs(tmp_path):
    """Packed by the shipped packer: both superpixel algorithms, both readings, no sample lost."""
    from shards.sources.folder import folder
    from shards.write import pack

    for path in sorted(shared("data/realmini/coco/images").iterdir())[:6]:
        (tmp_path / path.name).symlink_to(path)
    pack(folder(tmp_path), tmp_path / "set", superpixels=["slic", "felzenszwalb"], samples_per_shard=4)
    shards = ShardSet(tmp_path / "set")
    for algorithm in ("slic", "felzenszwalb"):
        for local in ("patch", "region"):
            epoch = batches(shards, 2, batch=3, spec=ViewSpec(local=local, superpixels=algorithm))
            assert sorted(key for b in epoch for key in b.keys) == sorted(shards.keys)
            assert not any(b.replaced for b in epoch)
            views = [view for b in epoch for view in (*b.query, *b.key)]
            assert all(view.float().std() > 1 for view in views)
            assert all(not torch.equal(a, b) for a, b in pairwise(views))
