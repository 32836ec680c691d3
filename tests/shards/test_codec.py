import io
import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.codec import (
    decode_image,
    decode_labels,
    encode_labels,
    encode_mask,
    flatten,
    image_suffix,
    split_members,
)
from shards.format import ShardError


def jpeg(**options) -> bytes:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 250, 20, 10  # red on the left
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def test_image_is_rgb_and_keeps_stored_rows_whatever_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    image = decode_image(jpeg(exif=exif))
    assert image.shape == (40, 60, 3)
    assert image[20, 5].tolist() == pytest.approx([250, 20, 10], abs=8)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_image_is_refused(suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    with pytest.raises(ShardError, match="cannot be decoded"):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"<html>", b"\xff\xd8\xff\xe0 no picture \xff\xd9"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ShardError):
        decode_image(data)


def test_padding_behind_the_end_marker_is_accepted():
    assert decode_image(jpeg() + b"\0" * 1000).shape == (40, 60, 3)


def test_suffix_comes_from_content():
    assert image_suffix(jpeg()) == "jpg"
    assert image_suffix(encode_mask(np.ones((2, 2), bool))) == "png"
    with pytest.raises(ShardError, match="neither"):
        image_suffix(b"GIF89a")


@pytest.mark.parametrize(("top", "dtype"), [(0, np.uint8), (255, np.uint8), (256, np.uint16), (60000, np.uint16)])
def test_labels_take_16_bits_only_when_needed(top, dtype):
    labels = np.arange(48).reshape(6, 8)
    labels[3, 3] = top
    decoded = decode_labels(encode_labels(labels))
    assert decoded.dtype == (dtype if top else np.uint8)
    assert np.array_equal(decoded, labels)


def test_truncated_labels_are_refused():
    data = encode_labels(np.random.default_rng(0).integers(0, 99, (40, 40)))
    with pytest.raises(ShardError, match="whole"):
        decode_labels(data[:-20])


def test_flatten_paints_later_over_earlier_and_objects_over_ignored():
    a, b, ignore = np.zeros((3, 1, 4), bool)
    a[0, :2], b[0, 1:3], ignore[0, 2:] = True, True, True
    assert flatten({1: a, 2: b}, [2, 1], ignore, (1, 4)).tolist() == [[1, 1, 2, 255]]
    assert flatten({1: a, 2: b}, [1, 2], ignore, (1, 4)).tolist() == [[1, 2, 2, 255]]
    with pytest.raises(ShardError, match="ignored pixels and class 255, which have the same label"):
        flatten({1: a, 255: b}, [1, 255], ignore, (1, 4))
    assert flatten({1: a, 255: b}, [1, 255], None, (1, 4)).tolist() == [[1, 255, 255, 0]]


def tar_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        return file.getvalue()[: tar.offset]


def test_split_members_agrees_with_tarfile():
    members = {"k.jpg": b"x" * 700, "k.json": b"{}", "k.mask.7.png": b"", "k.slic.png": b"y" * 512}
    assert split_members(tar_bytes(members)) == {name[2:]: data for name, data in members.items()}


def test_split_members_refuses_damage():
    raw = tar_bytes({"k.jpg": b"x" * 700, "k.json": b"{}"})
    with pytest.raises(ShardError, match="jpg is cut short"):
        split_members(raw[:900])
    with pytest.raises(ShardError, match="no tar header"):
        split_members(raw[512:])
    with pytest.raises(ShardError, match="2 samples"):
        split_members(tar_bytes({"a.jpg": b"1", "b.jpg": b"2"}))
    with pytest.raises(ShardError, match="0 samples"):
        split_members(b"")
