"""What an evaluation found: its scores by seed and by class, for files and for people."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain

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


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (n - 1) over seeds; of one seed there is none."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def outcome(results: Sequence[EpisodeResult], classes: Sequence[int], names: Mapping[int, str]) -> dict:
    """Everything that the results say, as JSON can hold it; scores are fractions.

    A class that no episode asked for is among the classes with 0, as in the published programs, and under 'never_met'.
    """
    by_seed = scores_by_seed(results, classes)
    episodes = Counter(result.class_id for result in results)
    sums = total(((result.class_id, result.counts) for result in results), classes)
    images = len(set(chain.from_iterable((result.query, *result.supports) for result in results)))
    encoded = sum(result.encoded for result in results)
    return {
        **{name: spread([getattr(found, name) for found in by_seed.values()]) for name in ("miou", "fb_iou")},
        "seeds": {
            seed: {name: value for name, value in asdict(found).items() if name != "per_class"}
            for seed, found in by_seed.items()
        },
        "classes": {
            names[class_id]: {
                "id": class_id,
                "iou": spread([found.per_class[class_id] for found in by_seed.values()]),
                "episodes": episodes[class_id],
                "counts": sums[class_id].tolist(),
            }
            for class_id in classes
        },
        "never_met": [names[class_id] for class_id in classes if not episodes[class_id]],
        "remarks": dict(Counter(remark for result in results for remark in result.flags)),
        "episodes": len(results),
        "images": images,
        "encoder_passes": encoded,
        "encoder_passes_per_image": encoded / images,
        "seconds_per_episode": statistics.fmean(result.seconds for result in results),
    }


def row(found: dict) -> dict[str, float]:
    """The scalars of an outcome for a log: mIoU and FB-IoU with their deviation, and every class."""
    flat = {name: found[name]["mean"] for name in ("miou", "fb_iou")}
    flat |= {f"{name}_std": found[name]["std"] for name in ("miou", "fb_iou") if found[name]["std"] is not None}
    return flat | {f"iou/{name}": about["iou"]["mean"] for name, about in found["classes"].items()}


def tables(found: dict, title: str) -> list[Table]:
    """Scores by seed, and by class where there are few, in percent."""
    by_seed = Table("seed", "mIoU", "FB-IoU", title=title, title_justify="left")
    for seed, one in found["seeds"].items():
        by_seed.add_row(str(seed), percent(one["miou"]), percent(one["fb_iou"]))
    if len(found["seeds"]) > 1:
        by_seed.add_section()
        by_seed.add_row("mean ± std", *(in_words(found[name]) for name in ("miou", "fb_iou")))
    by_class = Table("class", "IoU", "episodes")
    for name, about in found["classes"].items():
        by_class.add_row(name, in_words(about["iou"]), str(about["episodes"]))
    return [by_seed, by_class] if len(found["classes"]) <= SHOWN else [by_seed]


def in_words(value: dict[str, float | None]) -> str:
    """A mean and its deviation in percent."""
    return percent(value["mean"]) + ("" if value["std"] is None else f" ± {percent(value['std'])}")


def percent(fraction: float) -> str:
    """With two decimals, as papers print it."""
    return f"{100 * fraction:.2f}"
