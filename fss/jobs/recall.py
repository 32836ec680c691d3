"""The recall of region maps over thresholds (QGNet, Eq. 16 and Table VII).

The region R of a map V at a threshold a is where V > a; recall is |R and object| / |object| of the query. According
to the paper, the prior region map is low on objects, yet this recall of "map > threshold" is what it measures. So every
map is measured twice: as it is, and inverted (1 - map).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fss.data.episodes import Episode
from fss.data.transforms import Frame, class_mask
from fss.data.worker_count import worker_count
from fss.distributed.context import DistributedContext
from fss.errors import ConfigError
from fss.evaluate.measure import predictor_for
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.record import EpisodeResult
from fss.evaluate.scoring import Scoring
from fss.jobs.study import StudyJob, map_episodes, open_study
from fss.methods.base import EpisodeMethod, Features, Prediction
from fss.report import class_charts as charts
from fss.report.published import published_recall
from fss.report.tables import Table, markdown_table
from shards.format import write_whole
from shards.read import ShardSet

THRESHOLDS = tuple(tenth / 10 for tenth in range(1, 10))
INVERTED = "1 - "


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Recall of region maps over the episodes, as fractions."""

    thresholds: tuple[float, ...]
    of_episodes: dict[str, tuple[float, ...]]
    """Map -> its recall at each threshold, the mean over episodes: every object counts alike."""
    of_pixels: dict[str, tuple[float, ...]]
    """The same over all pixels of all objects: large objects count more."""
    episodes: int
    lost: int
    """Episodes left out, as their object has no pixel at the size of the method's input."""


def recall(job: StudyJob) -> int:
    """Measure recall on the episodes of an evaluation of the job, and write it into `job.out`; returns 0.

    Raises UserError or ShardError if an option, a file or the data do not fit.
    """
    with open_study(job) as study:
        result = measure_recall(
            study.method,
            study.shards,
            study.plan.episodes,
            study.plan.scoring,
            study.context,
            cache=job.eval.cache_gib,
            readers=worker_count(job.data, threads=1),
        )
        caveats = study.method.caveats(study.header.episodes_seen or 0)
        facts = {"weights": job.weights or "none", **study.statement()}
        facts |= {f"caveat {number}": text for number, text in enumerate(caveats, start=1)}
        study.publish(recall_table(result), lambda: write_recall(Path(job.out), result, facts))
    return 0


class _MapRecorder(EpisodePredictor):
    """Stores the maps of the current episode, and predicts an empty mask."""

    maps_of_episode: dict[str, Tensor]

    def query_extras(self, square: Tensor) -> Features:
        return {}  # maps need only the features of `encode`

    def predict_unchecked(self, query: Features, supports: Sequence[Features]) -> Prediction:
        self.maps_of_episode = self.maps(query, supports)
        if not self.maps_of_episode:
            raise ConfigError(
                f"{type(self.method).__name__} has no maps as it is configured, so there is no recall: give weights "
                "of a method that does, such as qgnet trained with method.prior_map or method.guided_map on"
            )
        return Prediction(mask=torch.zeros(self.size, self.size, dtype=torch.bool))


def measure_recall(
    method: EpisodeMethod,
    shards: ShardSet,
    episodes: Sequence[Episode],
    scoring: Scoring,
    context: DistributedContext,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    cache: float = 4,
    readers: int = 2,
) -> Recall:
    """Measure the recall of every map of `method` on the queries of `episodes`, at the size of its input. Collective.

    Maps are resized as features are (bilinear, corners aligned). Only pixels of the class count, so unknown ones (255)
    do not. Every rank gets the recall over all episodes, which is the same at any number of ranks.

    Raises ConfigError if the method has no maps, or no episode has a pixel of its object.
    """
    recorder = predictor_for(method, scoring, context, _MapRecorder)

    def covered(result: EpisodeResult) -> tuple[int, dict[str, list[int]]]:
        """Pixels of the object; map -> how many of them are above each threshold."""
        index = shards.find(result.query)
        mask = class_mask(shards.read(index), result.class_id, scoring.labels)  # [H, W]
        height, width = mask.shape
        inside = Frame.fit(height, width, scoring.size, scoring.resize).mask(mask) == 1  # [S, S]
        counts: dict[str, list[int]] = {}
        for name, region_map in recorder.maps_of_episode.items():
            values = at_input(region_map, scoring.size)[inside]
            counts |= {name: above(values, thresholds), f"{INVERTED}{name}": above(1 - values, thresholds)}
        return int(inside.sum()), counts

    rows = map_episodes(covered, recorder, shards, episodes, scoring, context, cache=cache, readers=readers)
    measured = [(pixels, counts) for pixels, counts in rows if pixels]
    if not measured:
        raise ConfigError(
            f"no object of the {len(rows)} episodes has a pixel at {scoring.size} pixels: give a larger eval.size"
        )
    pixels = np.array([count for count, _ in measured])  # [N]
    hits = {name: np.array([counts[name] for _, counts in measured]) for name in measured[0][1]}  # [N, T] each
    return Recall(
        thresholds=tuple(thresholds),
        of_episodes={name: tuple((h / pixels[:, None]).mean(0).tolist()) for name, h in hits.items()},
        of_pixels={name: tuple((h.sum(0) / pixels.sum()).tolist()) for name, h in hits.items()},
        episodes=len(measured),
        lost=len(rows) - len(measured),
    )


def at_input(region_map: Tensor, size: int) -> np.ndarray:
    """Resize a map [h, w] to the method's square input, float32 [S, S]."""
    square = interpolate(region_map[None, None].float(), (size, size), mode="bilinear", align_corners=True)
    return square[0, 0].cpu().numpy()


def above(values: np.ndarray, thresholds: Sequence[float]) -> list[int]:
    """Count the `values` [n] above each threshold."""
    return [int(np.count_nonzero(values > threshold)) for threshold in thresholds]


def recall_table(recall: Recall) -> Table:
    """The recall in per cent, means over episodes, above the paper's rows."""
    paper = published_recall()
    rows = [(name, *(f"{100 * value:.1f}" for value in values)) for name, values in recall.of_episodes.items()]
    if recall.thresholds == paper.thresholds:
        rows += [(f"{name}, paper", *(f"{value:.1f}" for value in values)) for name, values in paper.maps.items()]
    count = f"{recall.episodes:,} episodes"
    if recall.lost:
        count += f" ({recall.lost:,} more lost their object at the size of the input)"
    return Table(
        title="Recall of region maps",
        header=("map > threshold", *(f"{threshold:g}" for threshold in recall.thresholds)),
        rows=rows,
        note=f"Per cent of the object's pixels, the mean over {count}. Paper: {paper.source}.",
    )


def write_recall(folder: Path, recall: Recall, facts: Mapping[str, str]) -> Path:
    """Write recall.json (with `facts`), recall.md and recall.png into `folder`; returns the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    paper = published_recall()
    record = {**facts, "recall": asdict(recall), "paper": asdict(paper)}
    write_whole(folder / "recall.json", json.dumps(record, indent=1).encode())
    curves = {name: [100 * value for value in values] for name, values in recall.of_episodes.items()}
    charts.recall_curves(
        recall.thresholds, curves, folder / "recall.png", papers=paper.maps, paper_thresholds=paper.thresholds
    )
    lines = [markdown_table(recall_table(recall)), "![Recall over thresholds](recall.png)", ""]
    lines += [f"- {label}: {value}" for label, value in facts.items()]
    write_whole(folder / "recall.md", "\n".join([*lines, ""]).encode())
    return folder / "recall.md"
