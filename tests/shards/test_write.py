import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.check import check
from shards.codec import decode_labels, decode_mask, flatten, split_members
from shards.format import MANIFEST, Manifest, Meta, ShardError
from shards.sources.coco import coco
from shards.sources.folder import folder as image_folder
from shards.sources.voc import voc
from shards.synthetic import synthetic
from shards.write import pack
from tests.shards.native import palette_png, photograph

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


def files(folder: Path) -> dict[str, bytes]:
    """All visible files of a packed set."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}


def members(folder: Path, manifest: Manifest, key: str) -> dict[str, bytes]:
    """One sample by the manifest's offset."""
    (row,) = (row for row in manifest.samples if row.key == key)
    with open(folder / manifest.shards[row.shard].name, "rb") as file:
        file.seek(row.offset)
        return split_members(file.read(row.length))


def test_manifest_gives_every_sample_and_shards_mix_the_list(voc_root, tmp_path):
    manifest = pack(voc(voc_root, voc_root / "list.txt"), tmp_path / "out", samples_per_shard=5)
    assert [shard.name for shard in manifest.shards] == ["voc-000000.tar", "voc-000001.tar", "voc-000002.tar"]
    assert [shard.samples for shard in manifest.shards] == [4, 4, 4]    # equal, not 5 + 5 + 2
    keys = [row.key for row in manifest.samples]
    assert sorted(keys) == [f"2007_{number:06d}" for number in range(12)] != keys
    assert manifest == Manifest.load(tmp_path / "out")
    assert files(tmp_path / "out").keys() == {MANIFEST, *(shard.name for shard in manifest.shards)}

    sample = members(tmp_path / "out", manifest, "2007_000003")
    assert sample.keys() == {"jpg", "json", "mask.4.png", "mask.20.png", "ignore.png"}
    assert sample["jpg"] == (voc_root / "JPEGImages/2007_000003.jpg").read_bytes()
    meta = Meta.decode(sample["json"])
    assert (meta.source, meta.height, meta.width) == ("JPEGImages/2007_000003.jpg", 48, 64)
    assert meta.classes == {4: 200, 20: 600} and meta.paint == [4, 20]
    assert decode_mask(sample["ignore.png"]).sum() == 20


def test_any_webdataset_reader_streams_the_shards(voc_root, tmp_path):
    manifest = pack(
        voc(voc_root, voc_root / "list.txt"), tmp_path / "out", superpixels=["slic"], samples_per_shard=6
    )
    url = str(tmp_path / "out" / "voc-{000000..000001}.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [row.key for row in manifest.samples]
    for sample in samples:
        own = members(tmp_path / "out", manifest, sample["__key__"])
        assert {name: data for name, data in sample.items() if not name.startswith("__")} == own


def test_same_bytes_for_any_number_of_processes(tmp_path):
    for processes in (1, 2, 3):
        pack(
            synthetic(10), tmp_path / str(processes), superpixels=["felzenszwalb", "slic"],
            processes=processes, samples_per_shard=4,
        )
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")


def test_superpixels_are_stored_and_described(tmp_path):
    manifest = pack(synthetic(2), tmp_path, superpixels=["felzenszwalb", "slic", "slic"])
    assert manifest.superpixels.keys() == {"felzenszwalb", "slic"}
    assert manifest.superpixels["slic"]["n_segments"] == 100
    assert manifest.superpixels["slic"]["library"].startswith("scikit-image ")
    sample = members(tmp_path, manifest, "synthetic_000001")
    meta = Meta.decode(sample["json"])
    for algorithm in ("slic", "felzenszwalb"):
        labels = decode_labels(sample[f"{algorithm}.png"])
        assert labels.shape == (-(-meta.height // 2), -(-meta.width // 2))
        assert meta.superpixels[algorithm] == {"count": labels.max() + 1, "fallback": False}


def test_flat_image_is_flagged(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "in" / "flat.png")
    manifest = pack(image_folder(tmp_path / "in"), tmp_path / "out", superpixels=["felzenszwalb"])
    sample = members(tmp_path / "out", manifest, "flat")
    assert Meta.decode(sample["json"]).superpixels == {"felzenszwalb": {"count": 64, "fallback": True}}
    assert sample["png"] == (tmp_path / "in/flat.png").read_bytes()


def test_label_map_is_stored_only_where_painting_classes_does_not_give_it(coco_folder, tmp_path):
    source = coco(coco_folder / "images", coco_folder / "instances.json")
    manifest = pack(source, tmp_path / "out")
    five, six = (members(tmp_path / "out", manifest, key) for key in ("five", "six"))
    assert np.array_equal(decode_labels(five["labels.png"]), source.items[0].read().labels)
    assert six.keys() == {"jpg", "json"}


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


def test_finished_set_is_kept_and_lost_shards_are_made_again(voc_root, tmp_path):
    source = voc(voc_root, voc_root / "list.txt")
    (voc_root / "JPEGImages/2007_000000.jpg").write_bytes(b"")
    pack(source, tmp_path, samples_per_shard=3)
    before = files(tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    pack(source, tmp_path, samples_per_shard=3)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} == stamps
    for name in ("voc-000001.tar", "voc-000002.tar"):
        with open(tmp_path / name, "r+b") as file:
            file.truncate(3000)
    pack(source, tmp_path, samples_per_shard=3)
    assert files(tmp_path) == before
    changed = {path.name for path in tmp_path.glob("*.tar") if path.stat().st_mtime_ns != stamps[path.name]}
    assert changed == {"voc-000001.tar", "voc-000002.tar"}


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
    with pytest.raises(ProcessLookupError):    # the killed process's workers end by themselves
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_full_disk_is_said_and_finished_shards_stay(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 4:    # two shards and their sidecars
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


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_full_tmpfs(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(ShardError, match=r"no space left for .*: [1-9] of 20 shards are finished and stay"):
            pack(synthetic(40), disk, samples_per_shard=2)
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        pack(synthetic(40), disk, samples_per_shard=2)
        assert check(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_unwritable_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="cannot be written"):
        pack(synthetic(1), tmp_path / "file" / "out")


class Killer:
    """An item whose worker dies, as under the kernel's out-of-memory killer."""

    key = source = "killer"

    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_worker_is_said(tmp_path):
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
    said = [packer.communicate()[1] for packer in packers]
    assert [packer.returncode for packer in packers] == [0, 0]
    assert sum("waiting for another process" in text for text in said) == 1
    assert check(out) == []


def test_flattened_masks_of_voc_give_its_png_back(voc_root, tmp_path):
    manifest = pack(voc(voc_root, voc_root / "list.txt"), tmp_path / "out")
    sample = members(tmp_path / "out", manifest, "2007_000004")
    meta = Meta.decode(sample["json"])
    masks = {class_id: decode_mask(sample[f"mask.{class_id}.png"]) for class_id in meta.classes}
    flat = flatten(masks, meta.paint, decode_mask(sample["ignore.png"]), (meta.height, meta.width))
    png = Image.open(io.BytesIO((voc_root / "SegmentationClass/2007_000004.png").read_bytes()))
    assert np.array_equal(flat, np.array(png))


def test_damaged_manifests_are_named(tmp_path):
    pack(synthetic(1), tmp_path)
    raw = json.loads((tmp_path / MANIFEST).read_text())
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "has format version None"),
        (json.dumps({**raw, "version": 99}), "has format version 99"),
        (json.dumps({**raw, "samples": [{}]}), "does not hold what a manifest holds"),
    ):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ShardError, match=message):
            Manifest.load(tmp_path)
    with pytest.raises(ShardError, match="pack into another folder"):
        pack(synthetic(1), tmp_path)
