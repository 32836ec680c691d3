"""Packing with bad files, full disks, killed and competing packers; finished shards stay."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from shards.check import check
from shards.format import MANIFEST, Manifest, ShardError
from shards.sources.folder import folder as image_folder
from shards.sources.voc import voc
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.native_layouts import palette_png, photograph
from tests.support.shard_files import files

# Packs slowly enough that the test can kill it between two shards.
SLOW = """
import sys, time
from pathlib import Path
from shards import write
from shards.synthetic import synthetic
plain = write._write_shard
def slow(*arguments):
    part = plain(*arguments)
    time.sleep(0.4)
    return part
write._write_shard = slow
if __name__ == "__main__":
    write.pack(synthetic(24), Path(sys.argv[1]), superpixels=["slic"], processes=2, samples_per_shard=4)
"""


def test_bad_files_are_left_out_and_listed(voc_root, tmp_path):
    jpeg = voc_root / "JPEGImages/2007_000001.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    palette_png(voc_root / "SegmentationClass/2007_000002.png", np.ones((40, 64)))
    (voc_root / "SegmentationClass/2007_000005.png").unlink()
    (voc_root / "JPEGImages/2007_000007.jpg").write_text("not a picture")
    manifest = pack(voc(voc_root, voc_root / "list.txt"), tmp_path / "out", processes=2, samples_per_shard=6)
    reasons = {row["source"]: row["reason"] for row in manifest.bad}
    assert sorted(reasons) == [f"JPEGImages/2007_00000{number}.jpg" for number in (1, 2, 5, 7)]
    assert "cannot be decoded" in reasons["JPEGImages/2007_000001.jpg"]
    assert reasons["JPEGImages/2007_000002.jpg"] == "mask of class 1 is 64x40 pixels, the image 64x48"
    assert "2007_000005.png: No such file" in reasons["JPEGImages/2007_000005.jpg"]
    assert len(manifest.samples) == 8 == sum(shard.samples for shard in manifest.shards)
    assert check(tmp_path / "out") == []


def test_nothing_readable_or_nothing_to_read_is_an_error(tmp_path):
    photograph(tmp_path / "in" / "a.jpg")
    source = image_folder(tmp_path / "in")
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    with pytest.raises(ShardError, match="none of the 1 samples can be read"):
        pack(source, tmp_path / "out")
    source.items = []
    with pytest.raises(ShardError, match="nothing to pack"):
        pack(source, tmp_path / "out")


def test_other_arguments_are_refused(voc_root, tmp_path):
    source = voc(voc_root, voc_root / "list.txt")
    pack(source, tmp_path)
    before = files(tmp_path)
    for options in ({"superpixels": ["slic"]}, {"samples_per_shard": 3}):
        with pytest.raises(ShardError, match="holds shards of other arguments"):
            pack(source, tmp_path, **options)
    source.items = source.items[1:]
    with pytest.raises(ShardError, match="pack into another folder"):
        pack(source, tmp_path)
    assert files(tmp_path) == before


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="cannot be written"):
        pack(synthetic(1), tmp_path / "file" / "out")


def test_damaged_manifests_are_named(tmp_path):
    pack(synthetic(1), tmp_path)
    raw = json.loads((tmp_path / MANIFEST).read_text())
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "has format version None"),
        (json.dumps({**raw, "version": 99}), "has format version 99"),
        (json.dumps({**raw, "samples": [{}]}), "is not in the form of a manifest"),
    ):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ShardError, match=message):
            Manifest.load(tmp_path)
    with pytest.raises(ShardError, match="pack into another folder"):
        pack(synthetic(1), tmp_path)


@pytest.mark.parametrize("finished", [0, 1, 4])
def test_killed_and_started_again_gives_the_same_bytes(tmp_path, finished):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(script), str(out)], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.json"))) < finished and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / MANIFEST).exists()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} if finished else {}

    source = synthetic(24)
    pack(source, out, superpixels=["slic"], samples_per_shard=4)
    pack(source, tmp_path / "undisturbed", superpixels=["slic"], samples_per_shard=4)
    assert files(out) == files(tmp_path / "undisturbed")
    assert not list(out.glob(".*.tmp"))
    survivors = [name for name, stamp in kept.items() if (out / name).stat().st_mtime_ns == stamp]
    assert len(survivors) >= finished

    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):  # the killed process's workers end by themselves
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


class Killer:
    """An item whose worker dies, as under the kernel's out-of-memory killer."""

    key = source = "killer"

    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error(tmp_path):
    source = synthetic(3)
    source.items = [*source.items, Killer()]
    with pytest.raises(ShardError, match="packing process was killed"):
        pack(source, tmp_path, processes=2)


def test_two_packers_share_one_result(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    out = tmp_path / "out"
    packers = [
        subprocess.Popen([sys.executable, str(script), str(out)], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    messages = [packer.communicate()[1] for packer in packers]
    assert [packer.returncode for packer in packers] == [0, 0]
    assert sum("waiting for another process" in text for text in messages) == 1
    assert check(out) == []


def test_a_full_disk_is_an_error_and_finished_shards_stay(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 8:  # two shards and their sidecars, each file with its folder
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ShardError, match=r"no space left for .*: 2 of 4 shards are finished and stay; make room"):
        pack(synthetic(8), tmp_path / "out", samples_per_shard=2)
    assert sorted(path.suffix for path in (tmp_path / "out").glob("[!.]*")) == [".json", ".json", ".tar", ".tar"]
    assert not list((tmp_path / "out").glob(".*.tmp"))
    monkeypatch.undo()
    pack(synthetic(8), tmp_path / "out", samples_per_shard=2)
    pack(synthetic(8), tmp_path / "plain", samples_per_shard=2)
    assert files(tmp_path / "out") == files(tmp_path / "plain")


def test_full_tmpfs(small_disk):
    disk = small_disk("256k")
    with pytest.raises(ShardError, match=r"no space left for .*: [1-9] of 20 shards are finished and stay"):
        pack(synthetic(40), disk, samples_per_shard=2)
    subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    pack(synthetic(40), disk, samples_per_shard=2)
    assert check(disk) == []
