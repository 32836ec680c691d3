"""Label maps of base classes: the visible class of overlapping masks, the background, and the order of a run."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest

from fss.data.batch import LabelSpec
from fss.data.dataset import DataConfig
from fss.data.label_dataset import LabelDataset, LabelReader, LabelSources, labelled
from fss.data.loader import load
from fss.data.paired_transforms import AugmentConfig
from fss.errors import ConfigError
from shards.format import ShardError
from shards.read import ShardSet
from shards.sources import Sample, Source
from shards.write import pack
from tests.support.labelled import rectangles

STILL = AugmentConfig(scale=(1, 1), rotate=0, blur=0, flip=0, min_foreground=0)
CONFIG = DataConfig(batch=4, workers=0)


@dataclass(frozen=True)
class Painted:
    """16 x 16 pixels: class 7 in rows 0 to 9, 2 in columns 0 to 9, 5 in the last row; the diagonal is ignored."""

    key: str
    paint: tuple[int, ...]

    @property
    def source(self) -> str:
        return f"{self.key}.png"

    def read(self) -> Sample:
        image = np.full((16, 16, 3), 90, np.uint8)
        masks = {class_id: np.zeros((16, 16), bool) for class_id in (2, 5, 7)}
        masks[7][:10] = True
        masks[2][:, :10] = True
        masks[5][15] = True
        ignore = np.eye(16, dtype=bool)
        return Sample(
            image=cv2.imencode(".png", image)[1].tobytes(), masks=masks, paint=list(self.paint), ignore=ignore
        )


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> ShardSet:
    items = [Painted("a", (2, 5, 7)), Painted("b", (7, 5, 2))]
    folder = tmp_path_factory.mktemp("painted") / "set"
    pack(Source(name="painted", classes={2: "two", 5: "five", 7: "seven"}, items=items), folder, superpixels=())
    return ShardSet(folder)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> ShardSet:
    return rectangles(tmp_path_factory.mktemp("coloured") / "set", [1, 2, 3, 4] * 5)


@pytest.mark.parametrize("key", "ab")
@pytest.mark.parametrize("classes", [(2, 5, 7), (7, 2), (5,)])
def test_labels_follow_the_paint_order_and_leave_other_classes_out(painted, key, classes):
    """Painted pixel by pixel; a class that is not learned still covers those below it, as background."""
    index = painted.find(key)
    _, labels = LabelReader(painted, classes)(index)
    expected = np.zeros((16, 16), np.uint8)
    item = Painted(key, (2, 5, 7) if key == "a" else (7, 5, 2))
    sample = item.read()
    for y in range(16):
        for x in range(16):
            expected[y, x] = 255 if sample.ignore[y, x] else 0
            for class_id in item.paint:
                if sample.masks[class_id][y, x]:
                    expected[y, x] = sorted(classes).index(class_id) + 1 if class_id in classes else 0
    np.testing.assert_array_equal(labels, expected)


def test_too_many_classes_for_a_label_map_are_refused(painted):
    with pytest.raises(ConfigError, match="leaves 255 base classes, a label map numbers 254: choose"):
        LabelReader(painted, range(1, 256))


def test_a_sample_that_cannot_be_read_is_named(painted):
    reader = LabelReader(painted, (2,))
    reader.shards = broken = ShardSet(painted.folder)
    broken.read = lambda index: {"json": b"{}"}
    with pytest.raises(ShardError, match=r"^[ab]: "):
        reader(0)


def dataset(shards: ShardSet, images: list[int], augment: AugmentConfig = STILL, size: int = 33, seed: int = 0):
    data = LabelSources(read=LabelReader(shards, (2, 4)), images=np.array(images), augment=augment)
    return LabelDataset(LabelSpec(size=size), data, CONFIG, seed)


def test_an_epoch_has_every_training_image_once_and_no_other(coloured):
    images = [0, 1, 5, 6, 12, 17, 19]  # of two shards
    source = dataset(coloured, images)
    seen = [key for start in range(0, 14, 2) for key in source.batch(start, start + 2).keys]
    wanted = sorted(coloured.keys[index] for index in images)
    assert sorted(seen[:7]) == sorted(seen[7:]) == wanted
    assert seen[:7] != seen[7:]


def test_without_augmentation_image_and_labels_lie_on_each_other(coloured):
    """Yellow pixels are those of class 4, the second that is learned; red, class 1, is background."""
    both = sorted(coloured.find(key) for key in ("r0003", "r0007"))
    batch = dataset(coloured, both, size=65).batch(0, 2)
    assert batch.image.shape == (2, 3, 65, 65) and batch.labels.shape == (2, 65, 65)
    yellow = (batch.image[:, 0] > 200) & (batch.image[:, 1] > 200) & (batch.image[:, 2] < 60)
    assert yellow.any() and yellow.equal(batch.labels == 2)
    assert set(batch.labels.unique().tolist()) == {0, 2, 255}, "outside of the image nothing is known"


def test_a_random_crop_may_show_no_class_unless_asked_to_keep_it(coloured):
    """Objects are 24 x 16 of 64 x 48 pixels: at four times the size most crops of 33 pixels miss them."""
    large = replace(STILL, scale=(4, 4))
    free = dataset(coloured, list(range(20)), large).batch(0, 40).labels
    kept = dataset(coloured, list(range(20)), replace(large, min_foreground=0.05)).batch(0, 40).labels
    shows = [np.array([labelled(labels.numpy()).any() for labels in batch]) for batch in (free, kept)]
    assert 0 < shows[0].mean() < 0.5
    assert shows[1].mean() == 0.5, "half of the images show class 2 or 4"


def test_ranks_share_the_batch_of_one(coloured):
    def batches(rank: int, world_size: int):
        data = LabelSources(read=LabelReader(coloured, (2, 4)), images=np.arange(20), augment=AugmentConfig())
        source = load(LabelSpec(size=33), data, CONFIG, seed=3, rank=rank, world_size=world_size, start=2)
        return next(source)

    whole, halves = batches(0, 1), [batches(rank, 2) for rank in range(2)]
    assert whole.keys == halves[0].keys + halves[1].keys
    for rank, part in enumerate(halves):
        assert part.image.equal(whole.image[2 * rank : 2 * rank + 2])
        assert part.labels.equal(whole.labels[2 * rank : 2 * rank + 2])


def test_an_unreadable_image_is_replaced_and_named(coloured, monkeypatch):
    source = dataset(coloured, [1, 5, 9])
    good = source.data.read.shards.read

    def read(index: int) -> dict[str, bytes]:
        return {"json": b""} if index == 5 else good(index)

    monkeypatch.setattr(source.data.read.shards, "read", read)
    batch = source.batch(0, 3)
    assert coloured.keys[5] not in batch.keys
    assert len(batch.replaced) >= 1 and batch.replaced[0].startswith(coloured.keys[5])
