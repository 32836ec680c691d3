"""Episodes of GF-SAM, by stage."""

from functools import cache, partial
from types import SimpleNamespace

import torch
from gfsam_end_to_end import STAGES, Stopwatch, ours

from fss.methods.gfsam import GFSAM, GFSAMConfig
from gpu_parts.part import Part, Row, Settings, Values, number
from gpu_parts.stepping import job_context, peak_gib, seconds_of

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


@cache
def network(compiled: bool, settings: Settings) -> GFSAM:
    """GF-SAM with random weights, which take a while to draw."""
    torch.manual_seed(0)
    method = GFSAM(GFSAMConfig(compile=compiled, **SMALL if settings.small else {}))
    method.non_trainable.to(settings.device)
    return method


def measure(precision: str, compiled: bool, settings: Settings) -> Values:
    """The cells of one row."""
    method, episodes = network(compiled, settings), 1 if settings.small else EPISODES
    with job_context(settings.device, precision) as context, torch.inference_mode(), context.autocast():
        episode = made_up_episode(method.config.size, context.device)
        first = seconds_of(lambda: ours(method, episode, Stopwatch(settings.device)), context.device)
        if context.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(context.device)
        stopwatch = Stopwatch(settings.device)
        seconds = seconds_of(lambda: [ours(method, episode, stopwatch) for _ in range(episodes)], context.device)
        memory = peak_gib(context.device)
    stages = [number(1e3 * stopwatch.seconds[stage] / episodes) for stage in STAGES]
    return dict(zip(COLUMNS, [number(episodes / seconds), *stages, number(first), number(memory)], strict=True))


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
