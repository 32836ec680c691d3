"""The cost of QGNet at the papers' sizes: CPU seconds and peak memory of a training step and of an evaluated episode.

    python bench/cost.py [--weights FILE --stem original] [--threads 1]

ResNet-50, batch 1: a training step at 473 px with one support and with five, then the three parts of an evaluation at
473 and at 641 px. Every line comes from a process of its own, after one run to warm up. Backbone weights are real where
a file is given; the prior extractor's are random, which costs the same.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fss.data.batch import EpisodeBatch
from fss.methods.base import StepContext
from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import QGNet
from fss.nn.exports import ExportHeader
from fss.nn.weights import load_backbone

CASES = ["train 473 1", "train 473 5", "evaluate 473", "evaluate 641"]
MIB = 1 << 10  # of what getrusage counts in, KiB


def build(stem: str, weights: str | None) -> QGNet:
    """The paper's network; the header stands for the export of a prior extractor."""
    torch.manual_seed(0)
    header = ExportHeader(prior=ExportHeader(method="prior", backbone="resnet50"))
    method = QGNet(QGNetConfig(stem=stem), header=header)
    if weights:
        method.non_trainable["backbone"].load_state_dict(load_backbone(Path(weights), "resnet50", stem))
    return method


def centred(size: int, *lead: int) -> torch.Tensor:
    """Masks uint8 [*lead, size, size] whose object is a square on a quarter of the image."""
    mask = torch.zeros(*lead, size, size, dtype=torch.uint8)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return mask


def timed(action: Callable, *arguments: object) -> tuple[float, object]:
    began = time.process_time()
    result = action(*arguments)
    return time.process_time() - began, result


def train(method: QGNet, size: int, shots: int) -> dict[str, float]:
    """Forward pass and backward pass of one episode."""
    image = torch.randint(0, 256, (1, 1 + shots, 3, size, size), dtype=torch.uint8)
    mask = centred(size, 1, 1 + shots)
    batch = EpisodeBatch(
        query=image[:, 0],
        query_mask=mask[:, 0],
        support=image[:, 1:],
        support_mask=mask[:, 1:],
        class_id=torch.ones(1, dtype=torch.int64),
        keys=["made up"],
        replaced=[],
    )
    for _ in range(2):
        forward, (loss, _) = timed(method.loss, batch, StepContext())
        backward, _ = timed(loss.backward)
        method.trainable.zero_grad()
    return {"forward": forward, "backward": backward}


def evaluate(method: QGNet, size: int) -> dict[str, float]:
    """The cost of encoding an image, of describing a support, and of a prediction from one support and from five."""
    image, mask = torch.randn(1, 3, size, size), centred(size, 1)
    with torch.inference_mode():
        for _ in range(2):
            encode, features = timed(method.encode, image)
            encode_support, support = timed(method.encode_support, features, mask)
            predict, _ = timed(method.predict, features, [support])
            predict5, _ = timed(method.predict, features, [support] * 5)
    kept = sum(t.untyped_storage().nbytes() for t in features.values()) / (1 << 20)
    return {
        "encode": encode,
        "encode_support": encode_support,
        "predict": predict,
        "predict, 5 shots": predict5,
        "kept, MiB": kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="file of ResNet-50 weights; random ones without")
    parser.add_argument("--stem", choices=["torchvision", "deep", "original"], default="torchvision")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=CASES, help="measure this one here, and print it as JSON")
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(options.threads)
        what, *numbers = options.case.split()
        method = build(options.stem, options.weights)
        found = {"train": train, "evaluate": evaluate}[what](method, *map(int, numbers))
        found["peak, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
        print(json.dumps(found))
        return
    for case in CASES:
        output = subprocess.run([sys.executable, *sys.argv, "--case", case], check=True, stdout=subprocess.PIPE).stdout
        found = json.loads(output.splitlines()[-1])
        print(f"{case:14}", "  ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
