"""DeepGlobe, ISIC and iSAID in their native layouts."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss.data.episode_lists import read_list
from launch.pack import main
from shards.format import Manifest, ShardError
from shards.sources import isaid as isaid_module
from shards.sources import isic as isic_module
from shards.sources.deepglobe import deepglobe
from shards.sources.isaid import isaid
from shards.sources.isic import isic
from shards.write import pack
from tests.support.native_layouts import palette_png, photograph
from tests.support.places import shared


def grey_png(path: Path, mask: np.ndarray) -> None:
    """Write an array of 0..255 as a grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8), "L").save(path)


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """DeepGlobe: two tiles a class; tile 0 lies with classes 1 and 2. Edges of the masks are soft."""
    root = tmp_path / "Deepglobe"
    mask = np.zeros((24, 24))
    mask[2:8] = 255
    mask[8:10] = 128  # counts
    mask[10:14] = 127  # does not
    for class_id in range(1, 7):
        for name in ("0" if class_id < 3 else f"{class_id}0", f"{class_id}1"):
            photograph(root / f"{class_id}/test/origin/{name}_sat.jpg", 24, 24)
            grey_png(root / f"{class_id}/test/groundtruth/{name}_sat.png", mask)
    return root


def test_deepglobe_is_a_sample_a_class_and_tile(tiles):
    source = deepglobe(tiles)
    assert len(source.items) == 12
    assert [item.key for item in source.items[:4]] == ["1_0_sat", "1_11_sat", "2_0_sat", "2_21_sat"]
    (mask,) = source.items[2].read().masks.values()
    assert list(source.items[2].read().masks) == [2] and mask.sum() == 8 * 24 and not mask[10:].any()
    assert list(source.classes.values()) == ["urban", "agriculture", "rangeland", "forest", "water", "barren"]


def test_deepglobe_bad_files(tiles):
    (tiles / "3/test/origin/31_sat.jpg").unlink()
    (tiles / "3/test/groundtruth/30_sat.png").unlink()
    photograph(tiles / "4/test/origin/40_sat.jpg", 20, 24)
    manifest = pack(deepglobe(tiles), tiles.parent / "out")
    reasons = {row["source"]: row["reason"] for row in manifest.bad}
    assert len(manifest.samples) == 9 and len(reasons) == 3
    assert reasons["3/test/origin/31_sat.jpg"].endswith("31_sat.jpg: No such file or directory")
    assert reasons["3/test/origin/30_sat.jpg"].endswith("30_sat.png: No such file or directory")
    assert reasons["4/test/origin/40_sat.jpg"] == "mask of class 4 is 24x24 pixels, the image 24x20"
    with pytest.raises(ShardError, match=r"no tile in .*/1/test/origin: is it the folder that holds 1 to 6"):
        deepglobe(tiles / "1")


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    """ISIC: four photographs and the table of their classes."""
    root = tmp_path / "ISIC"
    mask = np.zeros((20, 30))
    mask[5:9, 5:9] = 255
    rows = ["ID,Class"]
    for number, name in enumerate(("nevus", "melanoma", "seborrheic_keratosis", "nevus")):
        photograph(root / isic_module.IMAGES / f"ISIC_{number:07d}.jpg", 20, 30)
        grey_png(root / isic_module.MASKS / f"ISIC_{number:07d}_segmentation.png", mask)
        rows.append(f"ISIC_{number:07d},{name}")
    (root / isic_module.IMAGES / "LICENSE.txt").write_text("terms")
    (root / "class_id.csv").write_text("\n".join(rows) + "\n")
    return root


def test_isic_takes_its_classes_from_the_table(lesions):
    source = isic(lesions, lesions / "class_id.csv")
    assert [(item.key, item.class_id) for item in source.items] == [
        ("ISIC_0000000", 1),
        ("ISIC_0000001", 2),
        ("ISIC_0000002", 3),
        ("ISIC_0000003", 1),
    ]
    assert source.items[1].read().masks[2].sum() == 16
    assert list(source.classes.values()) == ["nevus", "melanoma", "seborrheic_keratosis"]


@pytest.mark.parametrize(
    "table, message",
    [
        ("ID,Class\nISIC_0000000,nevus\n", r"class_id\.csv has no row for ISIC_0000001 \(3 photographs lack one\)"),
        (
            "ID,Class\nISIC_0000000,wart\n",
            "line 2 of .* gives ISIC_0000000 the class 'wart': expected one of nevus, mel",
        ),
        ("image,label\n", r"has the columns \['image', 'label'\]: give a CSV with the columns ID and Class"),
        ("", "has the columns None: give a CSV"),
    ],
)
def test_isic_bad_tables(lesions, table, message):
    (lesions / "class_id.csv").write_text(table)
    with pytest.raises(ShardError, match=message):
        isic(lesions, lesions / "class_id.csv")


def test_isic_rows_without_a_photograph_are_bad_files(lesions):
    with open(lesions / "class_id.csv", "a") as file:
        file.write("ISIC_0000009,nevus\n")
    manifest = pack(isic(lesions, lesions / "class_id.csv"), lesions.parent / "out")
    assert len(manifest.samples) == 4
    assert [row["source"] for row in manifest.bad] == [f"{isic_module.IMAGES}/ISIC_0000009.jpg"]
    with pytest.raises(ShardError, match=r"nowhere\.csv: No such file"):
        isic(lesions, lesions / "nowhere.csv")
    with pytest.raises(ShardError, match="ISIC2018_Task1-2_Training_Input is not a folder"):
        isic(lesions.parent, lesions / "class_id.csv")


def patches(root: Path, held: dict[str, set[int]]) -> Path:
    """iSAID: a patch a name, 32 pixels a side, with a bar of each class and a line that is ignored."""
    for number, (name, classes) in enumerate(held.items()):
        photograph(root / f"images/{name}.png", 32, 32, number)
        labels = np.zeros((32, 32), np.uint8)
        labels[30] = 255
        for place, class_id in enumerate(sorted(classes)):
            labels[2 * place] = class_id
        palette_png(root / f"semantic_png/{name}{isaid_module.SUFFIX}", labels)
    return root


def test_isaid_reads_index_maps_and_leaves_255_to_ignore(tmp_path):
    source = isaid(patches(tmp_path, {"P0003_0_256_0_256": {1, 15}, "P0001_0_256_0_256": set()}))
    assert [item.key for item in source.items] == ["P0001_0_256_0_256", "P0003_0_256_0_256"]
    sample = source.items[1].read()
    assert {class_id: int(mask.sum()) for class_id, mask in sample.masks.items()} == {1: 32, 15: 32}
    assert sample.ignore.sum() == 32 and sample.ignore[30].all()
    assert source.items[0].read().masks == {}
    assert len(source.classes) == 15 and (source.classes[1], source.classes[15]) == ("ship", "harbor")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: path.unlink(), f"P1{isaid_module.SUFFIX}: No such file"),
        (lambda path: Image.new("RGB", (32, 32)).save(path), "PNG of mode RGB"),
        (lambda path: palette_png(path, np.full((32, 32), 16)), "index 16, which is none of the 15 classes"),
        (lambda path: palette_png(path, np.full((32, 31), 1)), "mask of class 1 is 31x32 pixels, the image 32x32"),
    ],
)
def test_isaid_bad_masks(tmp_path, change, message):
    root = patches(tmp_path / "val", {"P0": {1}, "P1": {2}})
    change(root / f"semantic_png/P1{isaid_module.SUFFIX}")
    manifest = pack(isaid(root), tmp_path / "out")
    assert [sample.key for sample in manifest.samples] == ["P0"]
    assert message in manifest.bad[0]["reason"]


def test_isaid_wrong_places(tmp_path):
    with pytest.raises(ShardError, match="images is not a folder"):
        isaid(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "semantic_png").mkdir()
    with pytest.raises(ShardError, match=r"no patch \*\.png in"):
        isaid(tmp_path)


@pytest.mark.parametrize("shots", [1, 5])
def test_a_published_isaid_list_is_found_in_a_packed_set(tmp_path, shots):
    published = shared(f"golden/episodes/isaid_fold0_{shots}shot.tsv.gz")
    rows = [line.split("\t") for line in gzip.decompress(published.read_bytes()).decode().splitlines()[:30]]
    held: dict[str, set[int]] = {}
    for number, *names in rows:
        for name in names:
            held.setdefault(name, set()).add(int(number) + 1)
    pack(isaid(patches(tmp_path / "val", held)), tmp_path / "out")
    (tmp_path / "list.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    manifest = Manifest.load(tmp_path / "out")
    episodes = read_list(tmp_path / "list.tsv", manifest, shots)
    assert [
        [str(e.class_id - 1), *(manifest.samples[i].key for i in (e.query, *e.supports))] for e in episodes
    ] == rows  # in the order of the list


@pytest.mark.parametrize(
    "layout, options, samples",
    [
        ("deepglobe", "--root {tiles}", 12),
        ("isic", "--root {lesions} --classes {lesions}/class_id.csv", 4),
        ("isaid", "--root {patches}", 2),
    ],
)
def test_the_command(layout, options, samples, tiles, lesions, tmp_path, capsys):
    root = patches(tmp_path / "val", {"P0": {1}, "P1": {2}})
    out = tmp_path / "out"
    words = options.format(tiles=tiles, lesions=lesions, patches=root).split()
    assert main([layout, *words, "--out", str(out), "--processes", "1", "--superpixels"]) == 0
    assert f"{samples} of {samples} images" in capsys.readouterr().out
    assert Manifest.load(out).name == layout
