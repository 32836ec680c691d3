"""Views that a device makes of a whole batch: those of OpenCV up to rounding, few kernels, no waits of the host."""

from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch

from fss.data import augment_device
from fss.data.augment import Augmentation, Box, Fast, draw
from fss.data.augment_tables import RESIZE_STEPS, resize_taps
from fss.data.batch import ViewBatch, ViewSpec
from fss.data.deferred_views import DeferredViewBatch, defer
from fss.data.loader import load
from fss.data.view_dataset import ViewDataConfig
from fss.data.views import DrawnViews
from fss.numerics import numerics
from shards.codec import decode_image
from shards.read import ShardSet
from tests.support.counted_device import DEVICE
from tests.support.packed_sets import photo, write_set
from tests.support.places import shared

SIZES = [(240, 320), (320, 240), (97, 130), (300, 300)]
JITTERS = {
    "brightness": 1.3,
    "contrast": 0.7,
    "saturation": 1.35,
    "hue": -0.08,
}
NEAR = 0.1  # grey levels, on average
KERNELS = {"none": 150, "region": 150, "patch": 285}
"""Launches for a batch, at most."""


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Large smooth shapes and a little noise of every frequency, as a photograph has, uint8 [H, W, 3]."""
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 3))
    return np.clip(cv2.GaussianBlur(photo(seed, height, width), (0, 0), 2) + noise, 0, 255).astype(np.uint8)


def drawn(images: list[np.ndarray], change=lambda how: how) -> list[DrawnViews]:
    """Two draws for each image, changed by `change`."""
    samples = []
    for seed, image in enumerate(images):
        rng = np.random.default_rng(seed)
        views = {name: change(draw(rng, *image.shape[:2], (0.2, 1))) for name in ("query", "key")}
        samples.append(DrawnViews(image=Fast(image), augmentations=views, regions={}))
    return samples


def deferred(samples: list[DrawnViews], size: int = 96) -> DeferredViewBatch:
    keys = [str(i) for i in range(len(samples))]
    return defer(samples, ViewSpec(size=size), image=torch.arange(len(samples)), keys=keys, replaced=[])


def differences(samples: list[DrawnViews], size: int = 96) -> np.ndarray:
    """Grey levels between the device's views and those of OpenCV, [2, B, 3, S, S]."""
    batch = deferred(samples, size).to("cpu")
    assert batch.query.dtype == torch.uint8
    found = torch.stack([batch.query, batch.key]).numpy().astype(int)
    expected = [[s.image.apply(s.augmentations[name], size) for s in samples] for name in ("query", "key")]
    return np.abs(found - np.array(expected))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [picture(seed, *size) for seed, size in enumerate(SIZES * 4)]


@pytest.mark.parametrize("size", [40, 96, 225, 400])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_opencvs_within_one_grey_level(images, size, flip):
    found = differences(drawn(images[:4], lambda how: Augmentation(box=how.box, flip=flip)), size)
    assert found.max() <= 1 and found.mean() < 0.05


@pytest.mark.parametrize(
    "change",
    [
        {"gray": True},
        {"blur": 0.1},
        {"blur": 0.7},
        {"blur": 2.0},
        *({"jitter": ((name, strength), ("hue", 0.0))} for name, strength in JITTERS.items() if name != "hue"),
        *({"jitter": (("hue", 0.05), (name, strength))} for name, strength in JITTERS.items() if name != "hue"),
        {"jitter": (("hue", JITTERS["hue"]),)},
        {"jitter": (("hue", 0.1),)},
    ],
    ids=str,
)
def test_each_step_is_opencvs(images, change):
    samples = drawn(images, lambda how: Augmentation(box=how.box, **change))
    assert differences(samples).mean() < NEAR
    without = deferred(drawn(images, lambda how: Augmentation(box=how.box))).to("cpu").query
    changed = deferred(samples).to("cpu").query
    assert torch.equal(without, changed) == (change == {"blur": 0.1})  # a blur that narrow rounds to nothing


def test_draws_are_carried_out_as_by_opencv(images):
    samples = drawn(images)
    assert {how.jitter[0][0] for s in samples for how in s.augmentations.values() if how.jitter} == set(JITTERS)
    found = differences(samples)
    assert found.mean() < NEAR and found.mean((2, 3, 4)).max() < 1


def test_draws_on_photographs_are_carried_out_as_by_opencv():
    paths = sorted(shared("data/realmini/coco/images").iterdir())[:12]
    samples = drawn([decode_image(path.read_bytes()) for path in paths])
    assert differences(samples).mean() < NEAR
    assert differences(drawn([s.image.pixels for s in samples], lambda h: Augmentation(box=h.box))).max() <= 1


def test_weights_of_a_resize_are_exact_in_tf32_and_cover_the_crop_alone():
    start, length = np.float32([0, 3, 7, 90]), np.float32([100, 41, 20, 10])
    taps = resize_taps(start, length, 32, 100, np.array([False, True, False, True]))
    steps = taps.weight * RESIZE_STEPS
    assert torch.equal(steps, steps.round()) and RESIZE_STEPS <= 2**11 and taps.weight.min() >= 0
    assert (taps.weight.sum(2) == 1).all()
    matrix = augment_device.resize_matrices(taps.first, taps.weight, 100)  # [4, 32, 100]
    for of_view, first, count in zip(matrix, start.astype(int), length.astype(int), strict=True):
        used = of_view.sum(0).nonzero()[:, 0]
        assert first <= used.min() and used.max() < first + count
    assert (matrix.argmax(2).diff(dim=1) >= 0).all(1).tolist() == [True, False, True, False]  # a flip runs backwards


def test_views_do_not_depend_on_the_rest_of_the_batch(images, monkeypatch):
    samples = drawn(images)
    whole = deferred(samples).to("cpu")
    halves = [deferred(part).to("cpu") for part in (samples[:5], samples[5:])]
    monkeypatch.setattr(augment_device, "PART", 3 * 320 * 320 * 2)  # two images at once
    for name in ("query", "key"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
        assert torch.equal(getattr(whole, name), getattr(deferred(samples).to("cpu"), name))


def test_jitter_without_hue_is_refused(images):
    samples = drawn(images[:1], lambda how: replace(how, jitter=(("contrast", 0.5),)))
    with pytest.raises(ValueError, match="hue"):
        deferred(samples)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return ShardSet(write_set(tmp_path_factory.mktemp("set"), [9, 2, 14, 1, 6]))


def batches(shards: ShardSet, local: str, backend: str, count: int, *, batch: int = 8, workers: int = 0, **place):
    spec = ViewSpec(size=64, local=local, patch_size=24, regions=4, stride=16)
    config = ViewDataConfig(batch=batch, workers=workers, window=2, backend=backend)
    return [given.to("cpu") for given in islice(load(spec, shards, config, seed=5, **place), count)]


@pytest.mark.parametrize("local", ["none", "patch", "region"])
def test_batches_are_those_of_opencv(shards, local):
    for found, expected in zip(*(batches(shards, local, b, 3) for b in ("device", "cv2")), strict=True):
        assert type(found) is ViewBatch and found.keys == expected.keys
        assert found.tensors().keys() == expected.tensors().keys()
        for name, tensor in found.tensors().items():
            other = expected.tensors()[name]
            assert tensor.dtype == other.dtype and tensor.shape == other.shape
            if tensor.dtype == torch.uint8:
                assert (tensor.float() - other.float()).abs().mean() < NEAR, name
            else:
                assert torch.equal(tensor, other)


def test_batches_resume_bit_for_bit_on_other_ranks_and_workers(shards):
    whole = batches(shards, "patch", "device", 5)
    later = [batches(shards, "patch", "device", 2, start=3, rank=r, world_size=2, workers=1) for r in range(2)]
    for expected, *parts in zip(whole[3:], *later, strict=True):
        for name, tensor in expected.tensors().items():
            assert torch.equal(tensor, torch.cat([part.tensors()[name] for part in parts])), name


def test_broken_samples_are_replaced_as_with_opencv(tmp_path):
    broken = ShardSet(write_set(tmp_path, [12], lambda i, m: m | ({"jpg": m["jpg"][:300]} if i == 3 else {})))
    found, expected = (batches(broken, "none", backend, 1, batch=12)[0] for backend in ("device", "cv2"))
    assert found.replaced == expected.replaced != [] and found.keys == expected.keys


@pytest.mark.parametrize("local", KERNELS)
def test_few_kernels_and_no_waits(counted, shards, local):
    """And the values of the CPU."""
    spec = ViewSpec(size=32, local=local, patch_size=24, stride=8)
    for size in (4, 16):
        config = ViewDataConfig(batch=size, workers=0, backend="device")
        given = next(load(spec, shards, config, seed=0))
        with counted() as count:
            found = given.to(DEVICE, non_blocking=True)
        assert not count.waits
        assert count.kernels.total() <= KERNELS[local], count.kernels.most_common()
        expected = given.to("cpu").tensors()
        assert all(torch.equal(tensor.values, expected[name]) for name, tensor in found.tensors().items())


def test_a_patch_at_the_border_shows_the_image_alone():
    """What surrounds a smaller image in the buffer of the batch is in no view."""
    small, large = np.full((40, 50, 3), 200, np.uint8), np.zeros((90, 90, 3), np.uint8)
    how = Augmentation(box=Box(0, 0, 40, 50), blur=2.0)
    samples = [
        DrawnViews(image=Fast(image), augmentations={"query": how, "key": replace(how, flip=True)}, regions={})
        for image in (small, large)
    ]
    batch = deferred(samples).to("cpu")
    assert (batch.query[0] == 200).all() and (batch.key[0] == 200).all() and not batch.query[1].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_gpu_makes_the_views_of_the_cpu_without_a_wait(images, precision):
    """Crops bit for bit, in TF32 too."""
    crops = drawn(images, lambda how: Augmentation(box=how.box))
    with numerics(precision):
        for samples, near in ((crops, 0), (drawn(images), 0.01)):
            given = deferred(samples).pin_memory()
            given.to("cuda")  # loads the kernels
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = given.to("cuda", non_blocking=True)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            expected = given.to("cpu")
            for name in ("query", "key"):
                difference = getattr(found, name).cpu().float() - getattr(expected, name).float()
                assert difference.abs().mean() <= near
