"""Whether the loader keeps up with the GPU: a run of the training engine on images of ordinary size."""

import statistics
from functools import partial
from pathlib import Path

from fss.tracking.run_dir import RunDir
from gpu_parts.jobs import photographs, temporary, train
from gpu_parts.part import Part, Row, Settings, Values, number, percent
from shards.workers import cores

COLUMNS = ("images/s", "ms/step", "data wait")
MOST_WORKERS = 16
TINY = "--method.backbone resnet18 --method.view_size 64 --method.patch_size 32 --method.queue 64".split()
TINY += "--method.local_queue 64 --data.batch 4 --optim.steps 4 --log.every 2".split()


def measure(local: str, precision: str, workers: int, settings: Settings) -> Values:
    """The cells of one row: medians over the second half of the logged rows, as the loader starts ahead of the GPU."""
    run = Path(temporary().name) / f"{local}-{precision}-{workers}"
    words = f"--method.local {local} --run.precision {precision} --data.workers {workers} --optim.steps 100".split()
    words += TINY if settings.small else ["--data.batch", "128", "--log.every", "10"]
    train("pretrain_prior", settings, run, "--data.shards", str(photographs(8 if settings.small else 256)), *words)
    speeds = [row["speed"] for row in RunDir(run).rows() if "speed" in row]
    speeds = speeds[-(len(speeds) // 2) :]
    median = {key: statistics.median(speed[key] for speed in speeds) for key in ("images_per_s", "step_s", "data_wait")}
    found = (number(median["images_per_s"]), number(1e3 * median["step_s"]), percent(median["data_wait"]))
    return dict(zip(COLUMNS, found, strict=True))


def rows(settings: Settings) -> list[Row]:
    """The prior extractor, by local input and precision, with as many workers as there are cores to spare."""
    workers = 1 if settings.small else max(1, min(cores() - 1, MOST_WORKERS))
    planned = [("patch", "tf32"), ("patch", "bf16"), ("none", "bf16")]
    return [
        Row((f"prior, {local}", precision, str(workers)), partial(measure, local, precision, workers, settings))
        for local, precision in (planned[:1] if settings.small else planned)
    ]


PART = Part(
    title="Data wait",
    note="launch/pretrain_prior.py, batches of 128 from 256 JPEGs of 640 x 480 (when small, of 4 from 8): medians of "
    "what the run logs of its last 50 steps. Data wait: the share of the time in which the training waits for data.",
    labels=("method", "precision", "workers"),
    columns=COLUMNS,
    rows=rows,
)
