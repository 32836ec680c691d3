"""Output of packing: tars and a manifest, the same bytes from any number of processes, kept if they are whole."""

import io

import numpy as np
import webdataset
from PIL import Image

from shards.codec import decode_labels, decode_mask, flatten
from shards.format import MANIFEST, Manifest, Meta
from shards.sources.coco import coco
from shards.sources.folder import folder as image_folder
from shards.sources.voc import voc
from shards.synthetic import synthetic
from shards.write import pack
from tests.support.shard_files import files, members


def test_manifest_gives_every_sample_and_shards_mix_the_list(voc_root, tmp_path):
    manifest = pack(voc(voc_root, voc_root / "list.txt"), tmp_path / "out", samples_per_shard=5)
    assert [shard.name for shard in manifest.shards] == ["voc-000000.tar", "voc-000001.tar", "voc-000002.tar"]
    assert [shard.samples for shard in manifest.shards] == [4, 4, 4]  # equal, not 5 + 5 + 2
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
    manifest = pack(voc(voc_root, voc_root / "list.txt"), tmp_path / "out", superpixels=["slic"], samples_per_shard=6)
    url = str(tmp_path / "out" / "voc-{000000..000001}.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [row.key for row in manifest.samples]
    for sample in samples:
        own = members(tmp_path / "out", manifest, sample["__key__"])
        assert {name: data for name, data in sample.items() if not name.startswith("__")} == own


def test_same_bytes_for_any_number_of_processes(tmp_path):
    for processes in (1, 2, 3):
        pack(
            synthetic(10),
            tmp_path / str(processes),
            superpixels=["felzenszwalb", "slic"],
            processes=processes,
            samples_per_shard=4,
        )
    assert files(tmp_path / "1") == files(tmp_path / "2") == files(tmp_path / "3")


def test_a_set_is_the_same_wherever_its_source_lay(tmp_path, voc_root):
    """A run continues with shards that were packed again after their source moved."""
    first = pack(voc(voc_root, voc_root / "list.txt"), tmp_path / "first")
    moved = voc_root.rename(tmp_path / "moved")
    again = pack(voc(moved, moved / "list.txt"), tmp_path / "again")
    assert first.fingerprint != again.fingerprint and first.content() == again.content()
    (moved / "list.txt").write_text("2007_000003\n")
    assert pack(voc(moved, moved / "list.txt"), tmp_path / "less").content() != first.content()


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


def test_flattened_masks_of_voc_give_its_png_back(voc_root, tmp_path):
    manifest = pack(voc(voc_root, voc_root / "list.txt"), tmp_path / "out")
    sample = members(tmp_path / "out", manifest, "2007_000004")
    meta = Meta.decode(sample["json"])
    masks = {class_id: decode_mask(sample[f"mask.{class_id}.png"]) for class_id in meta.classes}
    flat = flatten(masks, meta.paint, decode_mask(sample["ignore.png"]), (meta.height, meta.width))
    png = Image.open(io.BytesIO((voc_root / "SegmentationClass/2007_000004.png").read_bytes()))
    assert np.array_equal(flat, np.array(png))
