"""Episode batches: the same from any process, image and mask together, replacement of broken samples."""

from itertools import islice

import cv2
import numpy as np
import pytest
import torch

from fss.data.batch import EpisodeBatch, EpisodeSpec
from fss.data.dataset import ATTEMPTS, DataConfig
from fss.data.episode_dataset import EpisodeSources
from fss.data.episodes import EpisodeSource, Policy
from fss.data.loader import load
from fss.data.paired_transforms import AugmentConfig
from shards.codec import encode_mask
from shards.format import ShardError
from shards.read import LostShardError, ShardSet
from tests.support.labelled import COLOURS, rectangles

SPEC = EpisodeSpec(size=49)
LABELS = [2, 3, 4] * 8
FIELDS = ("query", "query_mask", "support", "support_mask", "class_id")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return rectangles(tmp_path_factory.mktemp("set"), LABELS)


def episodes(shards: ShardSet, *, shots: int = 2, labels: str = "own", **augment) -> EpisodeSources:
    policy = Policy(draw="image_class", min_area=100, labels=labels)
    source = EpisodeSource(shards.manifest, [2, 3, 4], policy, shots, seed=3)
    return EpisodeSources(shards=shards, source=source, augment=AugmentConfig(**augment))


def batches(data: EpisodeSources, steps: int, *, batch: int = 8, workers: int = 0, accumulate: int = 1, **where):
    loader = load(SPEC, data, DataConfig(batch=batch, workers=workers), seed=5, accumulate=accumulate, **where)
    return list(islice(loader, steps * accumulate))


def joined(batches: list[EpisodeBatch]) -> dict:
    """All episodes of some batches, in their order."""
    tensors = {name: torch.cat([getattr(b, name) for b in batches]) for name in FIELDS}
    return tensors | {"keys": [key for b in batches for key in b.keys]}


def assert_same(a: dict, b: dict) -> None:
    assert a["keys"] == b["keys"]
    for name in FIELDS:
        assert torch.equal(a[name], b[name]), name


def test_a_batch_of_episodes(shards):
    data = episodes(shards, blur=0)
    (batch,) = batches(data, 1)
    assert batch.query.shape == (8, 3, 49, 49) and batch.support.shape == (8, 2, 3, 49, 49)
    assert batch.query_mask.shape == (8, 49, 49) and batch.support_mask.shape == (8, 2, 49, 49)
    assert all(getattr(batch, name).dtype == torch.uint8 for name in FIELDS[:4]) and not batch.replaced
    for row in range(8):
        episode = data.source.draw(row)
        names = [shards.keys[index] for index in (episode.query, *episode.supports)]
        assert batch.keys[row] == f"{names[0]} < {names[1]}, {names[2]} : {episode.class_id}"
        assert batch.class_id[row] == episode.class_id
        # The object lies in the mask, and it has the colour of its class.
        images = [batch.query[row], *batch.support[row]]
        for image, mask in zip(images, [batch.query_mask[row], *batch.support_mask[row]], strict=True):
            inner = torch.from_numpy(cv2.erode((mask == 1).numpy().astype(np.uint8), np.ones((3, 3)))) == 1
            assert inner.sum() > 100
            off = (image[:, inner].int() - torch.tensor(COLOURS[episode.class_id])[:, None]).abs()
            assert off.float().mean() < 1
    assert len({image.numpy().tobytes() for b in batch.support for image in b}) == 16


def test_ranks_workers_and_accumulation_share_out_the_same_episodes(shards):
    data = episodes(shards)
    whole = joined(batches(data, 4))
    assert len(set(whole["keys"])) > 24
    assert_same(whole, joined(batches(data, 4, workers=2)))
    for world_size, accumulate in [(2, 1), (2, 2), (1, 4)]:
        ranks = [batches(data, 4, rank=r, world_size=world_size, accumulate=accumulate) for r in range(world_size)]
        shares = [
            ranks[r][step * accumulate + a] for step in range(4) for a in range(accumulate) for r in range(world_size)
        ]
        assert_same(whole, joined(shares))


@pytest.mark.parametrize("start", [1, 3])
def test_start_equals_skipping(shards, start):
    data = episodes(shards)
    assert_same(joined(batches(data, 2, start=start)), joined(batches(data, start + 2)[start:]))


def test_another_seed_is_another_augmentation(shards):
    data = episodes(shards)
    first, other = (next(load(SPEC, data, DataConfig(batch=4, workers=0), seed=seed)) for seed in (5, 6))
    assert first.keys == other.keys and not torch.equal(first.query, other.query)


class Damaged(ShardSet):
    """Four samples broken in the ways in which samples break."""

    def read(self, index: int) -> dict[str, bytes]:
        members = super().read(index)
        match self.keys[index]:
            case "r0000":
                members["png"] = members["png"][:400]
            case "r0004":
                members["mask.3.png"] = encode_mask(np.ones((10, 10), bool))
            case "r0008":
                del members["mask.4.png"]
            case "r0012":
                members["mask.3.png"] = members["mask.2.png"] = encode_mask(np.zeros((48, 64), bool))
        return members


REASONS = {
    "r0000": "image cannot be decoded",
    "r0004": "mask.3.png: the mask is 10x10 pixels, the image 64x48: pack the set again",
    "r0008": "has no mask of class 4, which the manifest lists: pack the set again",
    "r0012": "no pixel of class 2 is visible",
}


def test_broken_episodes_are_replaced_and_named(shards):
    data = episodes(Damaged(shards.folder))
    found = batches(data, 6)
    replaced = [text for b in found for text in b.replaced]
    assert {text.split(":")[0] for text in replaced} == set(REASONS)
    assert all(REASONS[text.split(":")[0]] in text for text in replaced)
    assert not any(key in name for b in found for name in b.keys for key in REASONS)
    whole = joined(found)
    sound = joined(batches(episodes(shards), 6))
    for row, (key, expected) in enumerate(zip(whole["keys"], sound["keys"], strict=True)):
        broken = any(name in expected for name in REASONS)
        assert (key != expected) == broken
        assert torch.equal(whole["query"][row], sound["query"][row]) != broken
    ranks = [batches(data, 6, workers=1, rank=r, world_size=2) for r in range(2)]  # the same replacements everywhere
    assert_same(whole, joined([b for step in zip(*ranks, strict=True) for b in step]))


class Covered(ShardSet):
    """Class 2, painted after class 1, fills every image that it is in."""

    def read(self, index: int) -> dict[str, bytes]:
        members = super().read(index)
        return members | ({"mask.2.png": encode_mask(np.ones((48, 64), bool))} if "mask.2.png" in members else {})


@pytest.mark.parametrize("labels", ["own", "flat"])
def test_an_object_that_another_class_covers(shards, labels):
    """Is whole in its own mask; in the flat label map there is nothing left of it, which is no episode."""
    policy = Policy(draw="class_image", min_area=1, labels=labels)
    source = EpisodeSource(shards.manifest, [1], policy, 1, seed=0)
    found = batches(EpisodeSources(shards=Covered(shards.folder), source=source, augment=AugmentConfig()), 2)
    replaced = [text for b in found for text in b.replaced]
    assert bool(replaced) == (labels == "flat")
    assert all("no pixel of class 1 is visible" in text for text in replaced)
    assert all((b.query_mask == 1).any((1, 2)).all() and (b.support_mask == 1).any((2, 3)).all() for b in found)


def test_a_set_without_a_readable_episode(shards, monkeypatch):
    monkeypatch.setattr(ShardSet, "read", lambda self, index: {"png": b"junk"})
    with pytest.raises(ShardError, match=rf"^{ATTEMPTS} samples in a row cannot be read, .*python -m shards.check"):
        batches(episodes(shards), 1)


def test_a_shard_that_vanishes_is_not_a_bad_sample(tmp_path):
    shards = rectangles(tmp_path, LABELS)
    data = episodes(shards)
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    with pytest.raises(LostShardError, match="cannot be opened"):
        batches(data, 1)
