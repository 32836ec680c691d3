"""The cost of MSHNet, as a ratio to its equations as they are written (bench/plain_mshnet.py).

    python bench/mshnet.py [--size 473] [--shots 1 5] [--repeats 3] [--threads 1]

ResNet-50, one episode, objects on a quarter of every image, the same random weights for both; the program checks that
both give the same maps and logits. First the similarities of all layers and shots, from features that are there
already, then the whole forward pass: the two take turns, and the median CPU time of each counts. Memory is what a
process of its own holds at the peak beyond what it held before. Last, what a training step and the parts of an
evaluation cost.
"""

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from plain_mshnet import Plain, similarities
from torch import Tensor

from fss.data.batch import EpisodeBatch
from fss.methods.base import StepContext
from fss.methods.mshnet import MSHNet, MSHNetConfig
from fss.nn.hyperrelation import object_pixels, object_positions, relate, stack_layers

SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def build() -> MSHNet:
    """The paper's network with random weights."""
    torch.manual_seed(0)
    return MSHNet(MSHNetConfig())


def episode(size: int, shots: int) -> EpisodeBatch:
    """Noise, with an object on a quarter of every image."""
    image = torch.randint(0, 256, (1, 1 + shots, 3, size, size), dtype=torch.uint8)
    mask = torch.zeros(1, 1 + shots, size, size, dtype=torch.uint8)
    mask[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return EpisodeBatch(
        query=image[:, 0],
        query_mask=mask[:, 0],
        support=image[:, 1:],
        support_mask=mask[:, 1:],
        class_id=torch.ones(1, dtype=torch.int64),
        keys=["made up"],
        replaced=[],
    )


def features(weight: Tensor, side: int, shots: int, layout: torch.memory_format) -> tuple[list[Tensor], list[Tensor]]:
    """Random layers of a block for a query and K shots, as a backbone would give them: [1, C, h, w], [K, C, h, w]."""
    layers, _, channels = weight.shape
    generator = torch.Generator().manual_seed(side)

    def layer(images: int) -> Tensor:
        x = torch.empty(images, channels, side, side, memory_format=layout)
        for image in x:  # one by one, for the sake of the peak, and so that the layout does not decide the values
            image.copy_(torch.randn(channels, side, side, generator=generator))
        return x

    return [layer(1) for _ in range(layers)], [layer(shots) for _ in range(layers)]


def similarity_part(size: int, shots: int, shape: str) -> Callable[[], list[dict[str, Tensor]]]:
    """The similarities alone, of all layers and shots."""
    generatives = build().trainable["generative"]
    mask = episode(size, shots).support_mask[0]
    layout = torch.contiguous_format if shape == "plain" else torch.channels_last
    blocks = []
    side = math.ceil(size / 4)
    for generative in generatives:
        side = math.ceil(side / 2)
        blocks.append((*features(generative.weight, side, shots, layout), object_positions(mask, (side, side))))

    @torch.no_grad()
    def plain() -> list[dict[str, Tensor]]:
        return [similarities(*block, g.weight) for block, g in zip(blocks, generatives, strict=True)]

    @torch.no_grad()
    def shipped() -> list[dict[str, Tensor]]:
        found = []
        for generative, (query, support, positions) in zip(generatives, blocks, strict=True):
            layers, stacked = stack_layers(query), stack_layers(support)
            rows = (slice(k, k + 1) for k in range(shots))
            relation = relate(layers, [object_pixels(stacked[row], positions[row]) for row in rows])
            prototypes = generative.of_prototypes(relation.prototypes)
            found.append(
                {
                    "prototype": generative(prototypes, generative.of_queries(layers)),
                    "cosine": relation.cosine,
                }
            )
        return found

    return plain if shape == "plain" else shipped


def forward_pass(size: int, shots: int, shape: str) -> Callable[[], Tensor]:
    """The whole forward pass of an episode."""
    method, batch = build(), episode(size, shots)
    method.trainable.eval()
    if shape == "plain":
        plain = Plain(method)
        return lambda: plain.forward(batch)
    return torch.no_grad()(lambda: method.forward(batch)[0])


def training_step(size: int, shots: int, shape: str) -> Callable[[], None]:
    """Forward pass, backward pass and optimizer; there is no plain one."""
    method, batch = build(), episode(size, shots)
    optimizer = torch.optim.SGD(method.trainable.parameters(), **SGD, fused=True)

    def step() -> None:
        method.loss(batch, StepContext())[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


PARTS = {"similarities": similarity_part, "forward": forward_pass, "step": training_step}


def in_turns(actions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, after one run to warm up."""
    seen: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            began = time.process_time()
            action()
            seen[name].append(time.process_time() - began)
    return {name: statistics.median(row[1:]) for name, row in seen.items()}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def extra_mib(part: str, shape: str, size: int, shots: int, threads: int) -> float:
    """The rise of the peak memory of a process of its own, MiB."""
    options = ["--alone", part, shape, "--size", str(size), "--shots", str(shots), "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def evaluation(size: int, shots: int, repeats: int) -> str:
    """The cost of encoding an image, of describing a support and of a prediction, and the memory of what is cached."""
    method, batch = build(), episode(size, shots)
    image, mask = method.non_trainable["normalize"](batch.query), batch.support_mask[0, :1]
    seen = method.encode(image)
    supports = [method.encode_support(seen, mask)] * shots
    actions = {
        "encode": lambda: method.encode(image),
        "encode_support": lambda: method.encode_support(seen, mask),
        "predict": lambda: method.predict(seen, supports),
    }
    kept = [sum(t.nbytes for t in tensors.values()) / (1 << 20) for tensors in (seen, supports[0])]
    times = ", ".join(f"{name} {taken:.2f} s" for name, taken in in_turns(actions, repeats).items())
    return f"evaluation, {shots} shots: {times}; kept of an image {kept[0]:.1f} MiB, of a support {kept[1]:.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=473)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, after one to warm up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", nargs=2, metavar=("PART", "SHAPE"), help="print the memory that this adds, MiB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        part, shape = options.alone
        action = PARTS[part](options.size, options.shots[0], shape)
        before = peak_mib()
        action()
        print(peak_mib() - before)
        return
    # First of all: the peak that a process reports is at least what the one that started it held.
    cases = [(part, shots) for part in PARTS for shots in options.shots]
    shapes = {part: ["shipped"] if part == "step" else ["plain", "shipped"] for part in PARTS}
    memory = {
        (part, shots): [extra_mib(part, shape, options.size, shots, options.threads) for shape in shapes[part]]
        for part, shots in cases
    }
    for (part, shots), added in memory.items():
        actions = {shape: PARTS[part](options.size, shots, shape) for shape in shapes[part]}
        if len(actions) > 1:
            torch.testing.assert_close(actions["shipped"](), actions["plain"](), **CLOSE)
        taken = list(in_turns(actions, options.repeats).values())
        for unit, numbers in (("CPU s", taken), ("MiB", added)):
            shown = "  ".join(f"{shape} {number:8.2f}" for shape, number in zip(actions, numbers, strict=True))
            ratio = f"  ratio {numbers[1] / numbers[0]:.2f}" if len(numbers) > 1 else ""
            print(f"{part:12} {shots} shots  {unit:>5}: {shown}{ratio}", flush=True)
    for shots in options.shots:
        print(evaluation(options.size, shots, options.repeats), flush=True)


if __name__ == "__main__":
    main()
