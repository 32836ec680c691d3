import io
import shutil
import tarfile

import cv2
import numpy as np
import pytest

from shards.check import check, main
from shards.format import Manifest
from shards.synthetic import synthetic
from shards.write import pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    pack(synthetic(4), folder, superpixels=["slic"], samples_per_shard=2)
    return folder


@pytest.fixture
def folder(packed, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(packed, tmp_path / "set")


def rewrite(folder, extension: str, change) -> None:
    """Replace the members `extension` of the first shard, keeping everything else, manifest offsets included."""
    manifest = Manifest.load(folder)
    path = folder / manifest.shards[0].name
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    keys = {row.key: row for row in manifest.samples if row.shard == 0}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            key, _, ending = info.name.partition(".")
            if ending == extension:
                data = change(data)
                if data is None:
                    continue
                info.size = len(data)
            row = keys[key]
            if not hasattr(row, "began"):
                row.began, row.offset = True, tar.offset
            tar.addfile(info, io.BytesIO(data))
            row.length = tar.offset - row.offset
    manifest.save(folder)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_a_good_set_has_no_problems(packed, capsys):
    assert check(packed) == [] == check(packed, processes=2)
    assert main([str(packed)]) == 0
    assert "4 samples in 2 shards, all is well; 0 samples are recorded as bad" in capsys.readouterr().out


def test_bad_samples_are_counted(folder, capsys):
    manifest = Manifest.load(folder)
    manifest.bad = [{"source": "a.jpg", "reason": "is missing", "shard": 0}]
    manifest.save(folder)
    assert main([str(folder)]) == 0
    assert "1 samples are recorded as bad" in capsys.readouterr().out


def test_truncated_shard(folder, capsys):
    with open(folder / "synthetic-000001.tar", "r+b") as file:
        file.truncate(5000)
    (problem,) = check(folder)
    assert problem.startswith("synthetic-000001.tar: 5000 bytes, the manifest has ")
    assert problem.endswith("2 samples are lost")
    assert main([str(folder)]) == 1
    assert "run the same launch/pack.py command again" in capsys.readouterr().out


def test_missing_shard(folder):
    (folder / "synthetic-000000.tar").unlink()
    assert check(folder) == ["synthetic-000000.tar: cannot be read (No such file or directory); 2 samples are lost"]


def test_flipped_byte(folder):
    row = Manifest.load(folder).samples[0]
    with open(folder / "synthetic-000000.tar", "r+b") as file:
        file.seek(row.offset + row.length - 600)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 255]))
    assert "synthetic-000000.tar: content differs from the manifest's SHA-256" in check(folder)


@pytest.mark.parametrize(
    ("extension", "change", "message"),
    [
        ("jpg", lambda data: data[:-300], "image cannot be decoded"),
        ("jpg", lambda data: None, "needs one image and a json"),
        ("json", lambda data: data.replace(b'"paint":[', b'"paint":[7,'), "paint order"),
        ("json", lambda data: b"{}", "metadata cannot be read"),
        ("slic.png", lambda data: None, "has no slic superpixels"),
        ("slic.png", lambda data: png(np.zeros((9, 9), np.uint8)), r"slic.png is \(9, 9\), half the image is"),
        ("slic.png", lambda data: data[:-30], "slic.png is not a whole 1-channel PNG"),
        ("slic.png", lambda data: png(cv2.imdecode(np.frombuffer(data, np.uint8), -1) + 1), "does not have the ids"),
    ],
)
def test_damaged_members(folder, extension, change, message):
    rewrite(folder, extension, change)
    problems = check(folder)
    assert any(f"{row.key}: " in problem for row in Manifest.load(folder).samples for problem in problems)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(problems))


def test_wrong_masks(folder):
    class_id = next(iter(Manifest.load(folder).samples[0].classes))
    rewrite(folder, f"mask.{class_id}.png", lambda data: png(np.full((20, 30), 255, np.uint8)))
    problems = "\n".join(check(folder))
    assert f"mask.{class_id}.png is (20, 30), the image (" in problems
    assert "masks have areas" in problems and f"{class_id}: 600" in problems


def test_key_that_stands_twice_and_class_without_a_name(folder):
    manifest = Manifest.load(folder)
    manifest.samples[1].key = manifest.samples[0].key
    gone = next(iter(manifest.samples[3].classes))
    del manifest.classes[gone]
    manifest.save(folder)
    problems = "\n".join(check(folder))
    assert f"key {manifest.samples[0].key} stands 2 times" in problems
    assert "another sample lies at its offset" in problems
    assert f"classes [{gone}] are not in the manifest" in problems


def test_no_set(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "pack the set first" in capsys.readouterr().err
