"""Images beside index maps of any classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.format import ShardError
from shards.sources.indexed import indexed
from shards.write import pack
from tests.support.native_layouts import palette_png, photograph


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images, one in a subfolder: index 2 in a square, index 1 above it, a line of 255, the rest 0."""
    labels = np.zeros((48, 64), np.uint8)
    labels[4:14, 5:25] = 2
    labels[0:2] = 1
    labels[14, 5:25] = 255
    for name in ("a", "b", "town/c"):
        photograph(tmp_path / "images" / f"{name}.jpg")
        palette_png(tmp_path / "maps" / f"{name}.png", labels)
    (tmp_path / "names.txt").write_text("\ufeffwall\nroof\n\n", encoding="utf-8")
    return tmp_path


def read(root: Path, **options):
    return indexed(root / "images", root / "maps", root / "names.txt", **options)


def areas(sample) -> dict[int, int]:
    return {class_id: int(mask.sum()) for class_id, mask in sample.masks.items()}


def test_names_count_from_one_and_zero_is_background(root):
    source = read(root)
    assert source.classes == {1: "wall", 2: "roof"}
    assert [(item.key, item.source) for item in source.items] == [
        ("a", "a.jpg"),
        ("b", "b.jpg"),
        ("town_c", "town/c.jpg"),
    ]
    sample = source.items[2].read()
    assert areas(sample) == {1: 128, 2: 200} and sample.ignore.sum() == 20
    assert sample.image == (root / "images/town/c.jpg").read_bytes()


def test_zero_may_be_the_first_class_or_ignored(root):
    (root / "names.txt").write_text("sky\nwall\nroof\n")
    sample = read(root, first=0).items[0].read()
    assert areas(sample) == {1: 48 * 64 - 348, 2: 128, 3: 200} and sample.ignore.sum() == 20
    (root / "names.txt").write_text("wall\nroof\n" + "".join(f"class {n}\n" for n in range(3, 255)))
    palette_png(root / "maps/a.png", np.eye(48, 64) * 254)
    sample = read(root, ignored=0).items[0].read()
    assert areas(sample) == {254: 48} and sample.ignore.sum() == 48 * 63


def test_endings_as_cityscapes_has_them(root):
    for name in ("a", "b"):
        (root / f"images/{name}.jpg").rename(root / f"images/{name}_leftImg8bit.png")
        (root / f"maps/{name}.png").rename(root / f"maps/{name}_gtFine_labelTrainIds.png")
        palette_png(root / f"maps/{name}_gtFine_color.png", np.zeros((48, 64)))
    source = read(root, image_ending="_leftImg8bit.png", mask_ending="_gtFine_labelTrainIds.png")
    assert [item.key for item in source.items] == ["a", "b"]
    assert areas(source.items[1].read()) == {1: 128, 2: 200}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda root: (root / "maps/a.png").unlink(), r"a.png: No such file"),
        (lambda root: (root / "images/a.jpg").unlink(), r"a.jpg: No such file"),
        (lambda root: palette_png(root / "maps/a.png", np.ones((40, 64))), "class 1 is 64x40 pixels, the image 64x48"),
        (
            lambda root: palette_png(root / "maps/a.png", np.full((48, 64), 3)),
            "index 3, which is none of the 2 classes",
        ),
        (lambda root: Image.new("RGB", (64, 48)).save(root / "maps/a.png"), "mode RGB"),
    ],
)
def test_bad_samples(root, tmp_path, change, reason):
    change(root)
    manifest = pack(read(root), tmp_path / "out")
    (row,) = manifest.bad
    assert row["source"] == "a.jpg" and reason in row["reason"] and len(manifest.samples) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "names 0 classes"),
        ("\n".join(map(str, range(255))), "names 255 classes: give 1 to 254"),
        ("wall\n\nroof", r"line 2 of .*names\.txt is empty"),
        ("wall\nwall", r"line 2 of .*names\.txt repeats 'wall'"),
    ],
)
def test_unclear_lists_of_names(root, names, message):
    (root / "names.txt").write_text(names)
    with pytest.raises(ShardError, match=message):
        read(root)


def test_folders_that_do_not_belong_together(root):
    with pytest.raises(ShardError, match=r"no image in .* has an index map of its name .*--mask-ending"):
        read(root, mask_ending="_labels.png")
    palette_png(root / "images/a.png", np.zeros((48, 64)))
    with pytest.raises(ShardError, match=r"a\.png and a\.jpg in .* have the same name: give --image-ending"):
        read(root)
    assert [item.key for item in read(root, image_ending=".jpg").items] == ["a", "b", "town_c"]
