"""The summary of an evaluation: its scores by seed and by class, for files, logs and the console."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import TypedDict

from rich.table import Table

from fss.evaluate.metrics import Scores, scores, total
from fss.evaluate.record import EpisodeResult

SHOWN = 30  # classes that a terminal has room for; the files have all


def scores_by_seed(results: Sequence[EpisodeResult], classes: Sequence[int]) -> dict[int, Scores]:
    """Seed -> the scores of its episodes over `classes`."""
    groups = defaultdict(list)
    for result in results:
        groups[result.seed].append((result.class_id, result.counts))
    return {seed: scores(total(rows, classes)) for seed, rows in sorted(groups.items())}


class MeanStd(TypedDict):
    """A mean over seeds and its deviation."""

    mean: float
    std: float | None


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean and sample standard deviation (n - 1) over seeds; None for the deviation of a single seed."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def summarize(results: Sequence[EpisodeResult], classes: Sequence[int], names: Mapping[int, str]) -> dict:
    """All scores, counts and costs of the results, in the types of JSON; scores are fractions.

    names: class id -> name. A class without an episode is among the classes with 0, as in the reference
    implementations, and under 'never_met'.
    """
    by_seed = scores_by_seed(results, classes)
    episodes = Counter(result.class_id for result in results)
    sums = total(((result.class_id, result.counts) for result in results), classes)
    images = len(set(chain.from_iterable((result.query, *result.supports) for result in results)))
    encoded = sum(result.encoded for result in results)
    return {
        **{name: mean_std([getattr(of_seed, name) for of_seed in by_seed.values()]) for name in ("miou", "fb_iou")},
        "seeds": {
            seed: {name: value for name, value in asdict(of_seed).items() if name != "per_class"}
            for seed, of_seed in by_seed.items()
        },
        "classes": {
            names[class_id]: {
                "id": class_id,
                "iou": mean_std([of_seed.per_class[class_id] for of_seed in by_seed.values()]),
                "episodes": episodes[class_id],
                "counts": sums[class_id].tolist(),
            }
            for class_id in classes
        },
        "never_met": [names[class_id] for class_id in classes if not episodes[class_id]],
        "flags": dict(Counter(flag for result in results for flag in result.flags)),
        "episodes": len(results),
        "images": images,
        "encoder_passes": encoded,
        "encoder_passes_per_image": encoded / images,
        "seconds_per_episode": statistics.fmean(result.seconds for result in results),
    }


def scalars(summary: dict) -> dict[str, float]:
    """The scalars of a summary for a log: mIoU and FB-IoU with their deviation, and the IoU of every class."""
    values = {name: summary[name]["mean"] for name in ("miou", "fb_iou")}
    values |= {f"{name}_std": summary[name]["std"] for name in ("miou", "fb_iou") if summary[name]["std"] is not None}
    return values | {f"iou/{name}": row["iou"]["mean"] for name, row in summary["classes"].items()}


def tables(summary: dict, title: str) -> list[Table]:
    """Scores by seed, and by class if there are few, in percent."""
    by_seed = Table("seed", "mIoU", "FB-IoU", title=title, title_justify="left")
    for seed, row in summary["seeds"].items():
        by_seed.add_row(str(seed), percent(row["miou"]), percent(row["fb_iou"]))
    if len(summary["seeds"]) > 1:
        by_seed.add_section()
        by_seed.add_row("mean ± std", *(format_mean_std(summary[name]) for name in ("miou", "fb_iou")))
    by_class = Table("class", "IoU", "episodes")
    for name, row in summary["classes"].items():
        by_class.add_row(name, format_mean_std(row["iou"]), str(row["episodes"]))
    return [by_seed, by_class] if len(summary["classes"]) <= SHOWN else [by_seed]


def format_mean_std(value: MeanStd) -> str:
    """A mean and its deviation in percent."""
    return percent(value["mean"]) + ("" if value["std"] is None else f" ± {percent(value['std'])}")


def percent(fraction: float) -> str:
    """A fraction in percent with two decimals, as papers print it."""
    return f"{100 * fraction:.2f}"
