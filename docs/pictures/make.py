"""Make the pictures of README.md and docs/ from the runs of `make demo`, on synthetic data alone.

    make demo && python docs/pictures/make.py

Writes into the folder of this file: the example that docs/quickstart.md segments (example/), its contact sheet, the
episodes of median score of novel classes, the scores of the classes under QGNet and under the baseline, and the curves
of the pretraining.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from shards.synthetic import CLASSES, SyntheticItem

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SEED = 1  # the demo has seed 0, and so other images
CLASS = 1  # novel in the demo's fold
AREA = 1500  # pixels of the smallest object that the demo trains on
EMPTY = np.zeros(0)
QUERIES = 6
WIDTH = 900  # pixels of a picture on a page
COLOURS = 64  # of the palette of a drawing
QUALITY = 82  # JPEG quality of photographs
EPISODES = ["--eval.episodes", "60", "--eval.seeds", "[0]", "--log.wandb", "off"]


def example(folder: Path) -> None:
    """Write a support image with its mask, and queries with an object of its class, into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "photos").mkdir(parents=True)
    items = (item for item in map(drawn, range(10_000)) if item[1].get(CLASS, EMPTY).sum() >= AREA)
    image, masks = next(items)
    cv2.imwrite(str(folder / "support.jpg"), image)
    cv2.imwrite(str(folder / "mask.png"), 255 * masks[CLASS].astype(np.uint8))
    for number in range(QUERIES):
        cv2.imwrite(str(folder / "photos" / f"{number}.jpg"), next(items)[0])


def drawn(index: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Image `index` uint8 BGR [H, W, 3], and its masks bool [H, W] by class."""
    sample = SyntheticItem(str(index), str(index), SEED, index).read()
    return cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_COLOR), sample.masks


def fit(source: Path, name: str) -> None:
    """Store a picture no wider than a page and small enough to commit."""
    picture = Image.open(source).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    if name.endswith(".jpg"):
        picture.save(HERE / name, quality=QUALITY, optimize=True)
    else:
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


def launch(*words: object) -> None:
    """Run a launcher of this checkout with its options."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "runs/demo", help="default: runs/demo")
    demo = parser.parse_args().demo.resolve()
    example(HERE / "example")
    print(f"example: {CLASSES[CLASS]}")
    launch(
        "launch/predict.py",
        "--weights",
        demo / "qgnet/best.safetensors",
        "--support",
        HERE / "example/support.jpg",
        "--mask",
        HERE / "example/mask.png",
        "--query",
        HERE / "example/photos",
        "--out",
        demo / "found",
    )
    baseline = ["--method", "prototype", "--method.backbone", "resnet18", "--method.size", "97"]
    baseline += ["--method.backbone_weights", demo / "prior/prior.safetensors"]
    runs = {"qgnet_60": ["--weights", demo / "qgnet/best.safetensors"], "prototype_60": baseline}
    for name, words in runs.items():
        launch("launch/evaluate.py", *words, *EPISODES, "--run.dir", demo / name)
    launch("launch/report.py", *(demo / name for name in runs), "--out", demo / "comparison")
    fit(demo / "found/sheet.png", "contact_sheet.jpg")
    fit(demo / "qgnet_60/report/median.png", "episodes.jpg")
    fit(demo / "prior/report/curves.png", "curves.png")
    fit(demo / "comparison/classes_0.png", "classes.png")


if __name__ == "__main__":
    main()
