"""The cost of an episode of GF-SAM on photographs, by stage, beside a recorded run of the reference implementation.

    python bench/gfsam_end_to_end.py --golden GOLDEN/gfsam_real --photographs PHOTOGRAPHS \
        --dino-weights DINOV2_VITS14 --sam-weights MOBILE_SAM [--episodes 30] [--threads 2] [--plain]
        [--dino vits14] [--sam vit_t] [--device cpu]

The recorded run (episodes.tsv, results.tsv and the masks beside them) was made with two threads, the small networks and
an allocator that keeps what it has: page faults were most of the decoder otherwise. This program runs likewise and
prints how many masks match. Other networks, with random weights if none are given, are for times on a GPU. They are
compared with `--plain` alone: the decoder of the package in batches of 64 and plain_gfsam.py, on the same features in
the same run.
Means over the episodes; seconds of the CPU, or of the clock on a GPU.
"""

import argparse
import csv
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import plain_gfsam
import torch
from gfsam import KEEP, SIZE
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fss.data.transforms import Frame, fit_image
from fss.methods.gfsam import GFSAM, GFSAMConfig
from fss.nn.alignment import align, prompts
from fss.nn.pointgraph import segment

STAGES = ("DINOv2", "SAM encoder", "SAM decoder", "rest")
ALIKE = 0.999  # IoU of two final masks
Row = dict[str, str]
Seconds = dict[str, float]
"""Stage -> seconds of an episode; 'clock' is all of it by the clock."""


class Episode:
    """A recorded episode: the photographs as networks take them, the supports' masks, the recorded mask and times."""

    def __init__(self, row: Row, result: Row, golden: Path, photographs: Path, device: str):
        self.shots = int(row["shot"])
        names = [row["query"], *(row[f"support{i}"] for i in range(1, self.shots + 1))]
        self.images = [fitted(photographs / name).to(device) for name in names]  # [1, 3, S, S], the query's first
        self.masks = [class_mask(photographs / name, int(row["class"])).to(device) for name in names[1:]]  # [1, S, S]
        bits = np.load(golden / f"ep_{int(row['id']):03d}.npz", allow_pickle=False)["final_mask_bits"]
        self.mask = torch.from_numpy(np.unpackbits(bits).astype(bool)).view(SIZE, SIZE)
        recorded = [float(result[f"cpusec_{part}"]) for part in ("dino", "sam_enc", "sam_dec", "total")]
        rest = 2 * recorded[3] - sum(recorded)
        self.recorded = dict(zip(STAGES, [*recorded[:3], rest], strict=True)) | {"clock": float(result["sec_total"])}


def fitted(path: Path) -> Tensor:
    return fit_image(np.array(Image.open(path).convert("RGB")), SIZE, "squash")[0][None]


def class_mask(path: Path, class_id: int) -> Tensor:
    """uint8 [1, S, S], of a photograph whose label map lies in the folder beside its own."""
    folder = path.parent.parent
    maps = next(folder / name for name in ("SegmentationClass", "masks") if (folder / name).is_dir())
    labels = np.array(Image.open(maps / f"{path.stem}.png"))
    return torch.from_numpy(Frame.fit(*labels.shape, SIZE, "squash").mask((labels == class_id).astype(np.uint8)))[None]


class Stopwatch:
    """Seconds by stage of one episode."""

    def __init__(self, device: str):
        self._gpu = device != "cpu"
        self.seconds: Seconds = defaultdict(float)

    def _now(self) -> float:
        if self._gpu:
            torch.cuda.synchronize()
        return time.perf_counter() if self._gpu else time.process_time()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] += self._now() - start


def ours(method: GFSAM, episode: Episode, stage: Stopwatch) -> tuple[Tensor, Tensor]:
    """The final mask bool [S, S], and SAM's embedding of the query."""
    rules, sam = method.config, method.non_trainable["sam"]
    with stage("DINOv2"):
        encoded = [method.encode(image) for image in episode.images]
    with stage("SAM encoder"):
        embedding = sam.encode(episode.images[0])
    with stage("rest"):
        target = encoded[0]["features"][0]
        shots = [method.encode_support(shot, mask) for shot, mask in zip(encoded[1:], episode.masks, strict=True)]
        found = align(target, shots, rules)
        pixels = prompts(found.points, found.grid, SIZE, rules)
    with stage("SAM decoder"):
        logits = sam.masks(embedding, pixels)
    with stage("rest"):
        return segment(target, found, logits, SIZE, rules).mask, embedding


def plain(method: GFSAM, episode: Episode, embedding: Tensor, stage: Stopwatch) -> None:
    """Decoder and the rest in the plain way; on a GPU the reference implementation, too, computes the rest on it."""
    rules, sam = method.config, method.non_trainable["sam"]
    small = [F.interpolate(x, (rules.dino_size,) * 2, mode="bilinear", antialias=False) for x in episode.images]
    tokens = torch.cat([method.non_trainable["dino"](image).float() for image in small])

    def decode(pixels: Tensor) -> Tensor:
        with stage("SAM decoder"):
            labels = torch.ones(len(pixels), 1, dtype=torch.int64, device=pixels.device)
            parts = []
            for points, label in zip(pixels[:, None].float().split(64), labels.split(64), strict=True):
                sparse, dense = sam.prompt_encoder((points, label), None, None)
                place = sam.prompt_encoder.get_dense_pe()
                parts.append(sam.mask_decoder(embedding, place, sparse, dense, multimask_output=False)[0][:, 0])
            return torch.cat(parts)

    with stage("decoder and rest"):
        plain_gfsam.segment(tokens[0], tokens[1:], torch.cat(episode.masks), decode, SIZE)
    stage.seconds["rest"] = stage.seconds.pop("decoder and rest") - stage.seconds["SAM decoder"]


def line(name: str, rows: list[Seconds]) -> str:
    """The mean of each stage over episodes."""
    mean = {stage: sum(row[stage] for row in rows) / len(rows) for stage in (*STAGES, "clock")}
    each = "".join(f"{mean[stage]:13.2f}" for stage in STAGES)
    return f"  {name:9}{each}{sum(mean[stage] for stage in STAGES):13.2f}{mean['clock']:13.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, help="folder of the recorded run")
    parser.add_argument("--photographs", type=Path, required=True, help="folder that its paths start from")
    parser.add_argument("--dino", default="vits14")
    parser.add_argument("--dino-weights")
    parser.add_argument("--sam", default="vit_t")
    parser.add_argument("--sam-weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="measure the straightforward decoder and rest too")
    args = parser.parse_args()
    if os.environ.items() & KEEP.items() != KEEP.items():  # the allocator reads them as a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    method = GFSAM(
        GFSAMConfig(dino=args.dino, dino_weights=args.dino_weights, sam=args.sam, sam_weights=args.sam_weights)
    )
    method.non_trainable.to(args.device)
    as_recorded = (args.dino, args.sam) == ("vits14", "vit_t")
    rows, results = (read(args.golden / f"{name}.tsv") for name in ("episodes", "results"))
    pairs = list(zip(rows, results, strict=True))
    taken = [pairs[i * len(pairs) // args.episodes] for i in range(min(args.episodes, len(pairs)))]
    measured: dict[tuple[int, str], list[Seconds]] = defaultdict(list)
    alike = 0
    with torch.inference_mode():
        for number, (row, result) in enumerate([taken[0], *taken]):  # the first once more: to warm up
            episode = Episode(row, result, args.golden, args.photographs, args.device)
            stopwatch, start = Stopwatch(args.device), time.perf_counter()
            mask, embedding = ours(method, episode, stopwatch)
            stopwatch.seconds["clock"] = time.perf_counter() - start
            versions = {"ours": stopwatch.seconds}
            if as_recorded:
                versions["recorded"] = episode.recorded
            if args.plain:
                other, start = Stopwatch(args.device), time.perf_counter()
                plain(method, episode, embedding, other)
                encoders = {stage: stopwatch.seconds[stage] for stage in STAGES[:2]}  # the same for both
                clock = time.perf_counter() - start
                versions["plain"] = {**other.seconds, **encoders, "clock": clock}
            if number:
                union = (mask.cpu() | episode.mask).sum().clamp(min=1)
                alike += bool((mask.cpu() & episode.mask).sum() / union >= ALIKE)
                for name, seconds in versions.items():
                    measured[episode.shots, name].append(seconds)
    print(f"{len(taken)} episodes, {args.threads} threads, {args.device}; seconds an episode")
    if as_recorded:
        print(f"{alike} final masks match the recorded ones with an IoU of {ALIKE}")
    for shots in sorted({shots for shots, _ in measured}):
        names = [name for known, name in measured if known == shots]
        print(f"{shots}-shot, {len(measured[shots, 'ours'])} episodes")
        print(" " * 11 + "".join(f"{stage:>13}" for stage in (*STAGES, "all", "by the clock")))
        for name in names:
            print(line(name, measured[shots, name]))


def read(path: Path) -> list[Row]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


if __name__ == "__main__":
    main()
