"""Training episodes per core-second: shards to uint8 batches, against the published formulation on the same files.

    python bench/episodes.py [--voc FOLDER] [--size 473] [--shots 1] [--rounds 7] [--json]

One thread, CPU time of this process, so a busy machine disturbs little; the two take turns, and medians are reported.
The plain formulation goes about it as PFENet and its descendants do: JPEG and PNG read from files, np.unique over the
label map to choose a class, a path drawn from the class's list again and again until it is a new one, every step of the
augmentation on float32, crops cut out until one keeps enough, and batches of normalized float32. Without --voc: 48
pictures of blurred noise with blobs of four classes, 500 x 375; with it, a folder with JPEGImages and
SegmentationClass, all of whose maps are used.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fss.data.batch import EpisodeSpec
from fss.data.dataset import DataConfig
from fss.data.episode_dataset import EpisodeSources
from fss.data.episodes import EpisodeSource, Policy
from fss.data.loader import load
from fss.data.paired_transforms import AugmentConfig, augment
from fss.data.transforms import class_mask, fit_image
from shards.codec import decode_image, image_bytes
from shards.read import ShardSet
from shards.sources.voc import voc
from shards.write import pack

BATCH = 4
SEED = 0
MIN_AREA = 2048
MEAN, STD = [255 * m for m in (0.485, 0.456, 0.406)], [255 * s for s in (0.229, 0.224, 0.225)]


class Plain:
    """Episodes of a folder in VOC's layout, as the reference implementation makes them; without an end."""

    def __init__(self, root: Path, stems: list[str], size: int, shots: int) -> None:
        self.size, self.shots = size, shots
        self.images = [
            (root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png") for stem in stems
        ]
        self.by_class: dict[int, list[tuple[Path, Path]]] = defaultdict(list)
        for pair in self.images:
            label = np.array(Image.open(pair[1]))
            for class_id in set(np.unique(label).tolist()) - {0, 255}:
                if (label == class_id).sum() >= MIN_AREA:
                    self.by_class[class_id].append(pair)
        # Queries have a class to choose, and every class has enough supports.
        self.by_class = {class_id: pairs for class_id, pairs in self.by_class.items() if len(pairs) > shots}
        self.images = [pair for pair in self.images if any(pair in pairs for pairs in self.by_class.values())]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for number in count():
            rows = [self.episode(self.images[(number * BATCH + i) % len(self.images)]) for i in range(BATCH)]
            yield tuple(torch.stack(column) for column in zip(*rows, strict=True))

    def episode(self, query: tuple[Path, Path]) -> tuple[Tensor, ...]:
        image, label = self.read(query)
        classes = [c for c in np.unique(label).tolist() if c in self.by_class and query in self.by_class[c]]
        class_id = random.choice(classes)
        pairs = self.by_class[class_id]
        chosen: list[tuple[Path, Path]] = []
        while len(chosen) < self.shots:
            pair = pairs[random.randint(1, len(pairs)) - 1]
            if pair != query and pair not in chosen:
                chosen.append(pair)
        rows = [self.transform(image, self.binary(label, class_id))]
        for pair in chosen:
            image, label = self.read(pair)
            rows.append(self.transform(image, self.binary(label, class_id)))
        (query_image, query_mask), *supports = rows
        return query_image, query_mask, *(torch.stack(column) for column in zip(*supports, strict=True))

    @staticmethod
    def read(pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
        image = cv2.cvtColor(cv2.imread(str(pair[0]), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return np.float32(image), np.array(Image.open(pair[1]))

    @staticmethod
    def binary(label: np.ndarray, class_id: int) -> np.ndarray:
        target, ignored = np.where(label == class_id), np.where(label == 255)
        binary = np.zeros_like(label)
        binary[target[0], target[1]] = 1
        binary[ignored[0], ignored[1]] = 255
        return binary

    def transform(self, image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
        scale = random.uniform(0.9, 1.1)
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        if random.random() < 0.5:
            height, width = label.shape
            matrix = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-10, 10), 1)
            image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=MEAN)
            label = cv2.warpAffine(label, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=255)
        if random.random() < 0.5:
            image = cv2.GaussianBlur(image, (5, 5), 0)
        if random.random() < 0.5:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        image, label = self.crop(image, label)
        tensor = torch.from_numpy(image.transpose(2, 0, 1)).float()  # [3, S, S]
        for channel, mean, std in zip(tensor, MEAN, STD, strict=True):
            channel.sub_(mean).div_(std)
        return tensor, torch.from_numpy(label).long()

    def crop(self, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = (max(self.size - side, 0) for side in label.shape)
        if rows or columns:
            border = rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
            image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=MEAN)
            label = cv2.copyMakeBorder(label, *border, cv2.BORDER_CONSTANT, value=255)
        wanted = 0.85 * np.sum(label == 1)
        for _ in range(32):
            top, left = (random.randint(0, side - self.size) for side in label.shape)
            place = slice(top, top + self.size), slice(left, left + self.size)
            if np.sum(label[place] == 1) >= wanted:
                break
        return image[place], label[place]


def write_noise(root: Path, images: int = 48) -> None:
    """Pictures of about a photograph's JPEG size, each with a blob of one class and a smaller one of another."""
    rng = np.random.default_rng(SEED)
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir()
    for index in range(images):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        coarse = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        fine = cv2.GaussianBlur(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8), (0, 0), 0.8)
        cv2.imwrite(str(root / "JPEGImages" / f"{index:03d}.jpg"), cv2.addWeighted(coarse, 0.7, fine, 0.3, 0))
        label = np.zeros((375, 500), np.uint8)
        for class_id, reach in ((index % 4 + 1, 110), ((index + 1) % 4 + 1, 60)):
            angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            radius = reach * rng.uniform(0.6, 1, 40)
            centre = rng.uniform(120, 255, 2)
            points = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            cv2.fillPoly(label, [points.astype(np.int32)], class_id)
        Image.fromarray(label).save(root / "SegmentationClass" / f"{index:03d}.png")


def cpu_ms(work: Callable[[], object], times: int) -> float:
    """CPU milliseconds of one call, the mean of `times`."""
    before = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - before) / times * 1000


def stages(shards: ShardSet, source: EpisodeSource, size: int) -> list[tuple[str, float]]:
    """(stage, CPU milliseconds an image) of ours, and of the transform that evaluation uses instead."""
    episodes = [source.draw(number) for number in range(16)]
    read = [(shards.read(e.query), e.class_id) for e in episodes]
    decoded = [(decode_image(image_bytes(m)), class_mask(m, c, "own")) for m, c in read]
    rng, config = np.random.default_rng(SEED), AugmentConfig()
    work = {
        "read": lambda: [shards.read(e.query) for e in episodes],
        "decode the image": lambda: [decode_image(image_bytes(m)) for m, _ in read],
        "decode the mask": lambda: [class_mask(m, c, "own") for m, c in read],
        "augment": lambda: [augment(image, mask, size, rng, config) for image, mask in decoded],
        "fit, exact (evaluation)": lambda: [fit_image(image, size, "exact") for image, _ in decoded],
        "fit, compat (evaluation)": lambda: [fit_image(image, size, "compat") for image, _ in decoded],
    }
    return [(name, cpu_ms(call, 6) / len(episodes)) for name, call in work.items()]


def measure(root: Path, size: int, shots: int, rounds: int) -> dict[str, float]:
    """Print the table; returns episodes per core-second of both and their ratio."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    random.seed(SEED)
    stems = sorted(path.stem for path in (root / "SegmentationClass").glob("*.png"))
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.txt"
        ids.write_text("\n".join(stems))
        pack(voc(root, ids), Path(folder) / "set")
        shards = ShardSet(Path(folder) / "set")
        plain = Plain(root, stems, size, shots)
        policy = Policy(draw="image_class", min_area=MIN_AREA)
        source = EpisodeSource(shards.manifest, sorted(plain.by_class), policy, shots, seed=SEED)
        data = EpisodeSources(shards=shards, source=source, augment=AugmentConfig())
        print(f"{len(stems)} images, {len(plain.by_class)} classes; episodes of {shots} shot(s) at {size} px")
        ours = load(EpisodeSpec(size=size), data, DataConfig(batch=BATCH, workers=0), seed=SEED)
        pipelines = {"plain, float32": iter(plain), "ours, uint8": ours}
        times: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(rounds + 1):
            for name, batches in pipelines.items():
                times[name].append(cpu_ms(lambda batches=batches: next(batches), 8) / BATCH)
        parts = stages(shards, source, size)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first round warms up

    print(f"\n{'stage of ours, CPU ms an image':40s}")
    for name, ms in parts:
        print(f"{name:40s} {ms:7.2f}")
    reference = next(iter(median.values()))
    print(f"\n{'':40s} {'ms':>7s} {'ep./s':>7s} {'ratio':>7s}")
    for name, ms in median.items():
        print(f"{name:40s} {ms:7.2f} {1000 / ms:7.0f} {reference / ms:7.2f}")
    return {name: {"episodes_per_core_second": 1000 / ms, "ratio": reference / ms} for name, ms in median.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voc", type=Path, help="folder with JPEGImages and SegmentationClass; default: made-up ones")
    parser.add_argument("--size", type=int, default=473, help="side of the training crop, pixels")
    parser.add_argument("--shots", type=int, default=1, help="support images of an episode")
    parser.add_argument("--rounds", type=int, default=7, help="turns of either version")
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        if args.voc is None:
            write_noise(Path(made))
        figures = measure(args.voc or Path(made), args.size, args.shots, args.rounds)
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
