"""Made-up pictures that cost as much to read as photographs."""

from pathlib import Path

import cv2
import numpy as np

SEED = 0


def write_noise(root: Path, images: int = 64, width: int = 640, height: int = 480) -> None:
    """Write pictures of blurred noise into `root`, of about a photograph's JPEG size."""
    rng = np.random.default_rng(SEED)
    for index in range(images):
        coarse = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        coarse = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        fine = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 0.8)
        cv2.imwrite(str(root / f"{index:03d}.jpg"), cv2.addWeighted(coarse, 0.7, fine, 0.3, 0))
