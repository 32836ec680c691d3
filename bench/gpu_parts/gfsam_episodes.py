"""Episodes of GF-SAM, by stage."""

import time
from functools import partial
from types import SimpleNamespace

import torch
from gfsam_end_to_end import STAGES, Stopwatch, ours

from fss.methods.gfsam import GFSAM, GFSAMConfig
from gpu_parts.part import Part, Row, Settings, Values, number
from gpu_parts.stepping import job_context, peak_gib

COLUMNS = ("episodes/s", *(f"{stage} ms" for stage in STAGES), "first episode s", "peak GiB")
EPISODES = 10
SMALL = {"sam": "vit_t", "size": 128, "dino": "vits14", "dino_size": 56}


def made_up_episode(size: int, device: torch.device) -> SimpleNamespace:
    """One shot of a noise image, whose support is the same image: as many points as the rules allow are found.

    Has the fields images ([1, 3, S, S] each) and masks ([1, S, S]) of `gfsam_end_to_end.Episode`.
    """
    coarse = torch.randn(1, 3, 16, 16, device=device)
    image = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    mask = torch.zeros(1, size, size, dtype=torch.uint8, device=device)
    mask[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return SimpleNamespace(images=[image, image], masks=[mask])


def measure(precision: str, compiled: bool, settings: Settings) -> Values:
    """The cells of one row."""
    with job_context(settings.device, precision) as context, torch.inference_mode(), context.autocast():
        torch.manual_seed(0)
        method = GFSAM(GFSAMConfig(compile=compiled, **SMALL if settings.small else {}))
        method.non_trainable.to(context.device)
        episode = made_up_episode(method.config.size, context.device)
        start = time.perf_counter()
        ours(method, episode, Stopwatch(settings.device))
        first = time.perf_counter() - start
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(context.device)
        episodes = 1 if settings.small else EPISODES
        stopwatch, start = Stopwatch(settings.device), time.perf_counter()
        for _ in range(episodes):
            ours(method, episode, stopwatch)
        seconds = (time.perf_counter() - start) / episodes
        memory = peak_gib(context.device)
    stages = [number(1e3 * stopwatch.seconds[stage] / episodes) for stage in STAGES]
    return dict(zip(COLUMNS, [number(1 / seconds), *stages, number(first), number(memory)], strict=True))


def rows(settings: Settings) -> list[Row]:
    """Three precisions, then method.compile, which takes minutes."""
    planned = [("float32", False), ("tf32", False), ("bf16", False), ("bf16", True)]
    networks = "vits14, vit_t" if settings.small else "vitl14, vit_h"
    return [
        Row((networks, precision, "on" if compiled else "off"), partial(measure, precision, compiled, settings))
        for precision, compiled in (planned[:3] if settings.small else planned)
    ]


PART = Part(
    title="GF-SAM",
    note="One-shot episodes at 1024 px (when small, 128), random weights. Both images pass through DINOv2, the query "
    "through SAM; an evaluation encodes every image once. Seconds of a CPU are those of the processor by stage.",
    labels=("DINOv2, SAM", "precision", "method.compile"),
    columns=COLUMNS,
    rows=rows,
)
