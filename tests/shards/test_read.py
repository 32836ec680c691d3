"""Reading by index and key, remote sets, and the order of the samples."""

import errno
import functools
import http.server
import json
import multiprocessing
import os
import pickle
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import webdataset

from shards.format import MANIFEST, ShardError
from shards.read import OPEN_FILES, EpochOrder, LostShardError, ShardSet
from tests.support.packed_sets import write_set


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "set", [5, 1, 3])


def by_webdataset(folder):
    """What another program reads: {key: members}, in the order of the tars."""
    stream = webdataset.WebDataset([str(p) for p in sorted(folder.glob("*.tar"))], shardshuffle=False)
    return {row["__key__"]: {k: v for k, v in row.items() if k[0] != "_"} for row in stream}


def test_reads_what_webdataset_reads(folder):
    shards = ShardSet(folder)
    assert {key: shards.read(shards.find(key)) for key in shards.keys} == by_webdataset(folder)
    assert len(shards) == 9 and shards.counts == [5, 1, 3]
    with pytest.raises(ShardError, match="no sample 'nobody'"):
        shards.find("nobody")


def test_travels_to_other_processes(folder):
    shards = ShardSet(folder)
    first = shards.read(7)  # opens a shard: the descriptor must not travel
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.read(7) == first and "manifest" not in copy.__dict__ and copy.find("s0003") == 3
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(shards.read, range(9)) == [shards.read(i) for i in range(9)]


def test_keeps_few_files_open(tmp_path):
    shards = ShardSet(write_set(tmp_path, [1] * (OPEN_FILES + 6)))
    before = len(os.listdir("/proc/self/fd"))
    for index in [*range(len(shards)), *range(len(shards))]:
        shards.read(index)
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN_FILES
    del shards
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_file_that_was_not_read_for_longest_is_closed_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.read.OPEN_FILES", 2)
    shards = ShardSet(write_set(tmp_path, [1] * 3))
    opened, plain_open = [], os.open

    def recording_open(path, *args, **kwargs) -> int:
        opened.append(os.path.basename(path))
        return plain_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", recording_open)
    for index in (0, 1, 0, 2, 0, 2, 1):  # 2 takes the place of 1, the last 1 that of 0
        shards.read(index)
    assert opened == [f"toy-{shard:06d}.tar" for shard in (0, 1, 2, 1)]


def test_threads_share_a_set(tmp_path, monkeypatch):
    """No thread closes what another reads, and none leaves a file behind."""
    monkeypatch.setattr("shards.read.OPEN_FILES", 2)
    shards = ShardSet(write_set(tmp_path, [3] * 9))
    before = len(os.listdir("/proc/self/fd"))
    expected = [shards.read(i) for i in range(27)]
    order = random.Random(0).choices(range(27), k=2000)
    with ThreadPoolExecutor(8) as threads:
        assert all(found == expected[i] for i, found in zip(order, threads.map(shards.read, order), strict=True))
    assert len(os.listdir("/proc/self/fd")) - before <= 2


def test_a_disk_that_cannot_be_read_any_more(folder, monkeypatch):
    shards = ShardSet(folder)

    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "pread", stale)
    with pytest.raises(LostShardError, match=r"toy-000002.tar cannot be read at sample s0008 \(Stale file handle\)"):
        shards.read(8)


def test_truncated_missing_and_vanished_shards(folder):
    path = folder / "toy-000002.tar"
    shards = ShardSet(folder)
    whole = path.stat().st_size
    os.truncate(path, whole // 2)
    with pytest.raises(ShardError, match=rf"toy-000002.tar has {whole // 2} bytes, the manifest has {whole}.*again"):
        ShardSet(folder)
    with pytest.raises(ShardError, match=r"toy-000002.tar ends inside sample s0008"):  # truncated while we train
        shards.read(8)
    path.unlink()
    with pytest.raises(ShardError, match=f"toy-000002.tar is missing, the manifest has {whole}"):
        ShardSet(folder)
    with pytest.raises(LostShardError, match=r"toy-000002.tar cannot be opened \(No such file"):
        pickle.loads(pickle.dumps(shards)).read(8)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m["shards"][0].update(name="../toy.tar"), r"'../toy.tar' is not a name"),
        (lambda m: m["shards"][0].update(name="a.tar'; rm -rf ~"), "is not a name"),
        (lambda m: m["shards"][0].update(samples=4), "shard by shard"),
        (lambda m: m["samples"][8].update(offset=10**9), "s0008 lies outside its shard"),
        (lambda m: m.update(samples=[], shards=[]), "lists no samples"),
    ],
)
def test_a_manifest_that_contradicts_itself(folder, change, message):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=message):
        ShardSet(folder)


@pytest.fixture
def served(folder):
    """(URL of the folder, paths asked for)."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_remote_set_is_fetched_once_and_when_needed(folder, served, tmp_path):
    url, asked = served
    cache = tmp_path / "cache"
    shards = ShardSet(url, cache)
    assert asked == ["/" + MANIFEST]
    assert shards.read(8) == ShardSet(folder).read(8)
    assert asked == ["/" + MANIFEST, "/toy-000002.tar"]
    here = [ShardSet(folder).read(i) for i in range(9)]
    with multiprocessing.get_context("fork").Pool(4) as pool:  # all want the same shards at the same moment
        assert pool.map(shards.read, [*range(9)] * 4, chunksize=1) == here * 4
    assert Counter(asked) == {"/" + MANIFEST: 1, **{f"/toy-00000{i}.tar": 1 for i in range(3)}}


@pytest.mark.parametrize("prefix", ["file:{folder}", "pipe:cat {folder}/{{}}"])
def test_other_addresses(folder, tmp_path, prefix):
    shards = ShardSet(prefix.format(folder=folder), tmp_path / "cache")
    assert [shards.read(i) for i in range(9)] == [ShardSet(folder).read(i) for i in range(9)]


def test_remote_set_that_is_not_as_promised(folder, served, tmp_path):
    url, _ = served
    with pytest.raises(ShardError, match=r"is remote.*--data.cache"):
        ShardSet(url)
    with pytest.raises(ShardError, match=r"s3://bucket/set/manifest.json cannot be read.*pipe:aws"):
        ShardSet("s3://bucket/set", tmp_path / "cache")
    with pytest.raises(ShardError, match=r"/nothing/manifest.json cannot be read"):
        ShardSet(f"{url}/nothing", tmp_path / "cache")
    shards = ShardSet(url, tmp_path / "cache")
    path = folder / "toy-000000.tar"
    path.write_bytes(path.read_bytes()[:-1024] + bytes(1023) + b"x")
    with pytest.raises(LostShardError, match=r"toy-000000.tar gave \d+ bytes that do not have the hash"):
        shards.read(0)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix in (".tar", ".tmp")]


COUNTS = [7, 1, 12, 0, 3, 5]  # 28 samples


@pytest.mark.parametrize("window", [1, 2, 16])
def test_every_epoch_is_a_new_permutation(window):
    order = EpochOrder(COUNTS, seed=3, window=window)
    epochs = [order.positions(28 * e, 28 * e + 28) for e in range(4)]
    for number, epoch in enumerate(epochs):
        assert [e for e, _ in epoch] == [number] * 28
        assert sorted(index for _, index in epoch) == list(range(28))
    assert len({tuple(index for _, index in epoch) for epoch in epochs}) == 4
    assert EpochOrder(COUNTS, seed=4, window=window).positions(0, 28) != epochs[0]


def test_order_has_no_state():
    whole = EpochOrder(COUNTS, seed=3, window=2).positions(0, 100)
    order = EpochOrder(COUNTS, seed=3, window=2)
    for start, stop in [(90, 100), (0, 5), (26, 30), (20, 90), (5, 5)]:  # backwards, over epochs, empty
        assert order.positions(start, stop) == whole[start:stop]


def test_a_window_is_a_few_shards():
    counts = np.array([10] * 12)
    shard_of = np.repeat(np.arange(12), counts)
    found = [shard_of[index] for _, index in EpochOrder(counts, seed=0, window=3).positions(0, 120)]
    assert [len(set(found[i : i + 30])) for i in range(0, 120, 30)] == [3, 3, 3, 3]
    assert len(set(found[:10])) > 1  # mixed inside


def test_replacements_are_others_and_reproducible():
    order = EpochOrder(COUNTS, seed=3)
    drawn = [order.replacement((2, 9), attempt) for attempt in range(20)]
    assert drawn == [EpochOrder(COUNTS, seed=3, window=1).replacement((2, 9), attempt) for attempt in range(20)]
    assert all(epoch == 2 and 0 <= index < 28 and index != 9 for epoch, index in drawn)
    assert len(set(drawn)) > 8
