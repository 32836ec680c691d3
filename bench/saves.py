"""Seconds that a step waits for a checkpoint and for a comparison of the ranks.

    python bench/saves.py [--folder DIR] [--rounds 3] [--threads 1]

A prior extractor over a ResNet-50 with two queues of 65536 keys and its optimizer, on the CPU. A save: until the step
continues, and until the checkpoint is whole on the disk of DIR; the longest pause of a thread that computes meanwhile.
A comparison: digests that are computed where the tensors are, and of all bytes on the host, as it was before. A resume:
the file is read and loaded. One rank: what ranks send each other is not measured.
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fss.distributed.context import DistributedContext
from fss.distributed.tensor_digest import device_digests, fingerprint
from fss.methods.prior.config import PriorConfig
from fss.methods.prior.method import PriorExtractor
from fss.train.checkpoint import CheckpointConfig, Checkpoints, State
from fss.train.optim import OptimConfig, build_optimizer

KEYS = 65536


def build() -> State:
    """The state after a first step."""
    method = PriorExtractor(PriorConfig(backbone="resnet50", queue=KEYS, local_queue=KEYS))
    optimizer = build_optimizer(method, OptimConfig())
    for parameter in method.trainable.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return State(name="prior", method=method, optimizer=optimizer)


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def longest_pause(while_running: Callable[[], object]) -> float:
    """Seconds between two small products of matrices, at most, while another thread runs."""
    thread = threading.Thread(target=while_running)
    x, longest = torch.randn(64, 64), 0.0
    thread.start()
    while thread.is_alive():
        longest = max(longest, timed(lambda: x @ x))
    return longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where to write; a temporary folder without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    state = build()
    tensors = state.method_tensors()
    size = sum(tensor.nbytes for tensor in state.tensors().values())
    print(f"state {size / 1e6:.0f} MB, compared {sum(t.nbytes for t in tensors.values()) / 1e6:.0f} MB", flush=True)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    context = DistributedContext(
        world_size=1, device="cpu", precision="float32", accumulate=1, timeout_minutes=10, deterministic=False
    )
    with context:
        checkpoints = Checkpoints(folder, CheckpointConfig(), context)
        for step in range(1, options.rounds + 1):
            waits = timed(lambda step=step: checkpoints.save(state, step))
            pause = longest_pause(checkpoints.finish)
            whole = timed(lambda step=step: (checkpoints.save(state, step + 100), checkpoints.finish()))
            print(
                f"save: the step waits {waits:.3f} s; whole after {whole:.2f} s; longest pause {pause:.3f} s",
                flush=True,
            )
        for _ in range(options.rounds):
            digests = timed(lambda: device_digests(tensors.values()))
            before = timed(lambda: [fingerprint(tensor) for tensor in tensors.values()])
            print(f"comparison: {digests:.3f} s; of bytes on the host {before:.3f} s", flush=True)
        for _ in range(options.rounds):
            print(f"resume: {timed(lambda: checkpoints.resume(state)):.2f} s", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
