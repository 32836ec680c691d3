"""Two-view images per core-second: shards to uint8 batches, against plain PIL + torchvision on the same JPEGs.

    python bench/views.py [--images FOLDER] [--size 224] [--rounds 7] [--json]

One thread, CPU time of this process, so a busy machine disturbs little; the pipelines take turns, and medians are
reported. The plain pipeline is MoCo v2's own: PIL decode, torchvision's transforms, ToTensor, Normalize, stacked to a
batch. Without --images: 64 pictures of blurred noise, 640 x 480. The figures beside ours are those of an earlier
study on 640 x 480 JPEGs of 141 KB, on another processor of the same kind. With --data.backend device a data worker only
decodes and draws: that is timed here, and separately, on the CPU too, what it leaves to the device. The last table has
the CPU time of a worker process, which also writes its batches into shared memory.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import cv2
import psutil
import torch
from pictures import write_noise
from PIL import Image, ImageFilter
from torchvision import transforms

from fss.data.augment import BACKENDS, Augmentation, Box
from fss.data.batch import ViewSpec
from fss.data.deferred_views import DeferredViewBatch
from fss.data.loader import load
from fss.data.view_dataset import ViewDataConfig
from shards.read import ShardSet
from shards.sources.folder import folder
from shards.write import pack

BATCH = 16
SEED = 0
DEVICE_SIDE = {"two views": "none", "two views and two patches of 96 px": "patch"}


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def plain(paths: list[Path], size: int):
    """Batches of two views [B, 3, S, S] float32, in the usual form, without an end."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([transforms.Lambda(blur)], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    endless = cycle(paths)
    while True:
        images = []
        for path in islice(endless, BATCH):
            with Image.open(path) as file:
                images.append(file.convert("RGB"))
        yield torch.stack([augment(i) for i in images]), torch.stack([augment(i) for i in images])


def cpu_ms(work: Callable[[], object], times: int) -> float:
    """CPU milliseconds of one call, the mean of `times`."""
    before = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - before) / times * 1000


def stages(data: bytes, size: int) -> list[tuple[str, float, float, str]]:
    """(stage, ours, PIL, the earlier study's figures), CPU milliseconds."""
    fast, strict = BACKENDS["cv2"], BACKENDS["pil"]
    image, picture = fast.decode(data), strict.decode(data)
    height, width = image.size
    box = Box(height // 6, width // 6, height * 2 // 3, width * 2 // 3)
    jitter = (("brightness", 1.2), ("contrast", 0.8), ("saturation", 1.3), ("hue", 0.05))
    base = Augmentation(box=box)
    cut = [cpu_ms(lambda i=i: i.apply(base, size), 50) for i in (image, picture)]

    def extra(**change) -> list[float]:
        augmentation = Augmentation(box=box, **change)
        return [
            cpu_ms(lambda i=i: i.apply(augmentation, size), 50) - c for i, c in zip((image, picture), cut, strict=True)
        ]

    return [
        ("decode", cpu_ms(lambda: fast.decode(data), 50), cpu_ms(lambda: strict.decode(data), 50), "1.34, PIL 1.54"),
        ("crop, resize and layout, a view", *cut, "PIL .81"),
        ("jitter, a jittered view", *extra(jitter=jitter), "PIL 2.00"),
        ("hue alone", *extra(jitter=jitter[3:]), "PIL 1.56"),
        ("blur of sigma 1, a blurred view", *extra(blur=1.0), "PIL 1.19"),
    ]


def device_side(batch: DeferredViewBatch) -> tuple[float, float, float]:
    """CPU milliseconds of making the views of an image, KiB of its pixels as they are sent, and of its views."""
    views = batch.to("cpu").tensors()  # warms up
    ms = cpu_ms(lambda: batch.to("cpu"), 3) / BATCH
    weight = sum(x.nbytes for x in views.values() if x.dtype == torch.uint8)
    return ms, batch.images.pixels.nbytes / BATCH / 1024, weight / BATCH / 1024


def worker_ms(batches: Iterator) -> float:
    """CPU milliseconds of this process's data workers for an image."""
    for _ in range(4):
        next(batches)
    workers = psutil.Process().children(recursive=True)

    def used() -> float:
        return sum(sum(worker.cpu_times()[:2]) for worker in workers)

    before = used()
    for _ in range(60):
        next(batches)
    return (used() - before) / 60 / BATCH * 1000


def measure(root: Path, size: int, rounds: int) -> dict[str, float]:
    """Print the table; returns images per core-second of each version and the ratios to the plain one."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    random.seed(SEED)
    torch.manual_seed(SEED)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    weight = statistics.mean(path.stat().st_size for path in paths) / 1000
    print(f"{len(paths)} JPEGs, mean {weight:.0f} kB; views of {size} px")
    with tempfile.TemporaryDirectory() as packed:
        pack(folder(root), Path(packed), superpixels=["slic"])
        shards = ShardSet(packed)

        def ours(backend: str, local: str = "none", workers: int = 0):
            config = ViewDataConfig(batch=BATCH, workers=workers, backend=backend)
            return load(ViewSpec(size=size, local=local), shards, config, seed=SEED)

        pipelines = {
            "plain PIL + torchvision, float32": plain(paths, size),
            "ours, pil, uint8": ours("pil"),
            "ours, cv2, uint8": ours("cv2"),
            "ours, cv2, and two patches of 96 px": ours("cv2", "patch"),
            "ours, cv2, and 16 regions": ours("cv2", "region"),
            "left by device": ours("device"),
            "left by device, with two patches": ours("device", "patch"),
            "left by device, with 16 regions": ours("device", "region"),
        }
        steps = max(1, min(len(paths), 64) // BATCH)
        times: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(rounds + 1):
            for name, batches in pipelines.items():
                times[name].append(cpu_ms(lambda batches=batches: next(batches), steps) / BATCH)
        supplied = {
            f"{backend}, {name}": worker_ms(ours(backend, local, workers=1))
            for name, local in DEVICE_SIDE.items()
            for backend in ("cv2", "device")
        }
        made = {name: device_side(next(ours("device", local))) for name, local in DEVICE_SIDE.items()}
    median = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round warms up

    print(f"\n{'stage, CPU ms':40s} {'cv2':>7s} {'pil':>7s}   earlier study")
    for name, fast, strict, before in stages(paths[0].read_bytes(), size):
        print(f"{name:40s} {fast:7.2f} {strict:7.2f}   {before}")
    reference = next(iter(median.values()))
    print("\ntwo views of an image; the earlier study had 89 img/s with PIL, 207 with OpenCV")
    print(f"{'':40s} {'ms':>7s} {'img/s':>7s} {'ratio':>7s}")
    for name, ms in median.items():
        print(f"{name:40s} {ms:7.2f} {1000 / ms:7.0f} {reference / ms:7.2f}")
    print("\nthe device's part, on one core of this CPU; KiB an image: sent, and of the views")
    for name, (ms, sent, views) in made.items():
        print(f"{name:40s} {ms:7.2f} ms {sent:7.0f} {views:7.0f}")
    print("\na worker process with its transport, CPU ms an image")
    for name, ms in supplied.items():
        print(f"{name:40s} {ms:7.2f} {1000 / ms:7.0f}")
    return {name: {"images_per_core_second": 1000 / ms, "ratio": reference / ms} for name, ms in median.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs, searched below; default: 64 made-up ones")
    parser.add_argument("--size", type=int, default=224, help="side of a view, pixels")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every version")
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        if args.images is None:
            write_noise(Path(made))
        figures = measure(args.images or Path(made), args.size, args.rounds)
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
