"""Training jobs as a user starts them, and sets of made-up images for them."""

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from pictures import write_noise

from gpu_parts.part import ROOT, Settings
from shards.sources.folder import folder
from shards.synthetic import synthetic
from shards.workers import cores
from shards.write import pack

PLAIN = "--run.report false --log.wandb off".split()


def train(launcher: str, settings: Settings, run: Path, *words: str) -> None:
    """Run launch/`launcher`.py into the folder `run`. Raises RuntimeError with its last line if it fails."""
    place = ["--run.dir", str(run), "--run.device", settings.device]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / f"{launcher}.py"), *place, *PLAIN, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    print(done.stdout)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise RuntimeError(f"launch/{launcher}.py ended with {done.returncode}: {lines[-1] if lines else ''}")


@cache
def temporary() -> tempfile.TemporaryDirectory:
    """A folder that lasts as long as this process."""
    return tempfile.TemporaryDirectory()


@cache
def photographs(images: int) -> Path:
    """Packed JPEGs of 640 x 480 noise with superpixels, of about a photograph's size."""
    raw, packed = (Path(temporary().name) / name for name in ("photographs", "packed"))
    raw.mkdir()
    write_noise(raw, images)
    pack(folder(raw), packed, superpixels=["slic"], processes=cores(), samples_per_shard=16)
    return packed


@cache
def labelled(images: int) -> Path:
    """Packed images of the procedural set, with masks of 24 classes and superpixels."""
    packed = Path(temporary().name) / "labelled"
    pack(synthetic(images), packed, superpixels=["slic"], processes=cores(), samples_per_shard=64)
    return packed
