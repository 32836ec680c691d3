"""Samples that cannot be packed are tried again by the same command; a fault of the disk is not one of a sample."""

import errno
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.encode import encode_item
from shards.format import MANIFEST, Manifest, Meta, ReadError, ShardError
from shards.sources import Sample, Source
from shards.sources.folder import folder as image_folder
from shards.sources.voc import voc
from shards.write import pack
from tests.support.native_layouts import photograph
from tests.support.shard_files import files, members


def failing_read(monkeypatch, name: str, number: int) -> None:
    """Reading the file `name` fails with the error of that number."""
    plain = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == name:
            raise OSError(number, "trouble", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ENOSPC])
def test_a_fault_of_the_disk_stops_and_the_same_command_continues(voc_root, tmp_path, monkeypatch, number):
    source = voc(voc_root, voc_root / "list.txt")
    pack(source, tmp_path / "plain", samples_per_shard=3)
    last = Manifest.load(tmp_path / "plain").samples[-1].key
    failing_read(monkeypatch, f"{last}.jpg", number)
    with pytest.raises(ShardError, match=rf"{last}\.jpg cannot be read \(trouble\).*: 3 of 4 shards are finished and "):
        pack(source, tmp_path / "out", samples_per_shard=3)
    assert not (tmp_path / "out" / MANIFEST).exists()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(stamps) == 3
    monkeypatch.undo()
    pack(source, tmp_path / "out", samples_per_shard=3)
    assert files(tmp_path / "out") == files(tmp_path / "plain")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_a_fault_of_the_disk_crosses_processes(voc_root, tmp_path):
    source = voc(voc_root, voc_root / "list.txt")
    source.items = [*source.items, Failing(OSError(errno.EIO, "Input/output error"))]
    with pytest.raises(ShardError, match=r"odd one cannot be read \(Input/output error\).*: 0 of 1 shards"):
        pack(source, tmp_path, processes=2)


class Failing:
    """An item whose file makes a decoder fail."""

    key = "odd"
    source = "odd one"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self) -> Sample:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Image.DecompressionBombError("too many pixels"), "DecompressionBombError: too many pixels"),
        (
            ValueError("Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"),
            "ValueError: Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK",
        ),
        (
            cv2.error("OpenCV(4.1) a.cpp:3: error:\n (-215:Assertion failed)"),
            "error: OpenCV(4.1) a.cpp:3: error: (-215:Assertion failed)",
        ),
        (
            OSError("cannot identify image file <_io.BytesIO object at 0x7f00>"),
            "OSError: cannot identify image file <_io.BytesIO>",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file"), "FileNotFoundError: [Errno 2] No such file"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (ShardError("marks no pixel"), "marks no pixel"),
    ],
)
def test_any_error_about_one_file_is_a_bad_sample(error, reason):
    packed = encode_item(Failing(error), ())
    assert packed.meta is None and packed.reason == reason


@pytest.mark.parametrize("error", [MemoryError(), ReadError("a.jpg cannot be read")])
def test_memory_and_disk_are_not_a_sample_s_fault(error, tmp_path):
    with pytest.raises(type(error)):
        encode_item(Failing(error), ())
    with pytest.raises(ShardError, match="0 of 1 shards are finished and stay"):
        pack(Source(name="odd", classes={}, items=[Failing(error)]), tmp_path)


def test_mended_samples_are_packed_by_the_same_command(voc_root, tmp_path):
    source = voc(voc_root, voc_root / "list.txt")
    pack(source, tmp_path / "whole", samples_per_shard=3)
    damaged = [voc_root / f"JPEGImages/{name}.jpg" for name in ("2007_000001", "2007_000007")]
    kept = [path.read_bytes() for path in damaged]
    for path in damaged:
        path.write_bytes(b"")
    manifest = pack(source, tmp_path / "out", samples_per_shard=3)
    assert len(manifest.bad) == 2
    before = files(tmp_path / "out")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}

    assert pack(source, tmp_path / "out", samples_per_shard=3) == manifest  # still bad: nothing is written
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == stamps

    damaged[0].write_bytes(kept[0])
    pack(source, tmp_path / "out", samples_per_shard=3)
    (shard,) = (row["shard"] for row in manifest.bad if "000001" in row["source"])
    changed = {name for name, data in files(tmp_path / "out").items() if before[name] != data}
    assert changed == {MANIFEST, manifest.shards[shard].name}
    damaged[1].unlink()  # another reason, which the manifest must have
    (row,) = pack(source, tmp_path / "out", samples_per_shard=3).bad
    assert "No such file" in row["reason"]

    damaged[1].write_bytes(kept[1])
    pack(source, tmp_path / "out", samples_per_shard=3, processes=2)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_set_of_bad_samples_only_is_tried_again(tmp_path):
    photograph(tmp_path / "in" / "a.jpg")
    data = (tmp_path / "in" / "a.jpg").read_bytes()
    source = image_folder(tmp_path / "in")
    (tmp_path / "in" / "a.jpg").unlink()
    for _ in range(2):
        with pytest.raises(ShardError, match=r"none of the 1 samples can be read; the first: .*No such file"):
            pack(source, tmp_path / "out")
    (tmp_path / "in" / "a.jpg").write_bytes(data)
    assert len(pack(source, tmp_path / "out").samples) == 1


def test_swapped_sides_speak_of_the_orientation(voc_root):
    item = voc(voc_root, voc_root / "list.txt").items[0]
    photograph(item.image, 64, 48)
    assert "mask of class 1 is 64x48 pixels, the image 48x64: its EXIF orientation" in encode_item(item, ()).reason


def test_too_many_superpixels_are_a_bad_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "shards.superpixels.ALGORITHMS",
        {"slic": lambda image: np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2])},
    )
    for name, side in (("few", 512), ("many", 514)):
        photograph(tmp_path / "in" / f"{name}.png", side, side)
    manifest = pack(image_folder(tmp_path / "in"), tmp_path / "out", superpixels=["slic"])
    (row,) = manifest.bad
    assert row["source"] == "many.png" and "slic gives 66049 superpixels and 65536 is the most" in row["reason"]
    meta = Meta.decode(members(tmp_path / "out", manifest, "few")["json"])
    assert meta.superpixels["slic"]["count"] == 65536
