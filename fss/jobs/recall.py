"""How much of an object a method's region maps cover: recall over thresholds (QGNet, Eq. 16 and Table VII).

Where a map V exceeds a threshold a is the region R; recall is |R and object| / |object| of the query. QGNet says that
its prior region map is low on objects, yet measures this recall of "map > threshold". So every map is measured twice:
as it is, and turned round (1 - map).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fss.data.episodes import Episode
from fss.data.transforms import Frame, class_mask
from fss.distributed.context import DistributedContext
from fss.errors import ConfigError
from fss.evaluate.measure import predictor_for
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.record import EpisodeResult
from fss.evaluate.scoring import Scoring
from fss.jobs.study import StudyJob, map_episodes, study
from fss.methods.base import Features, Method, Prediction
from fss.report import class_charts as charts
from fss.report.published import published_recall
from fss.report.tables import Table, markdown_table
from shards.format import write_whole
from shards.read import ShardSet

THRESHOLDS = tuple(tenth / 10 for tenth in range(1, 10))
TURNED = "1 - "


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
    """Episodes left out because no pixel of the object is left at the size of the method's input."""


def recall(job: StudyJob) -> int:
    """Measure recall on the episodes that an evaluation of the job would have, and write it down; returns 0.

    Raises UserError or ShardError for what a user can mend.
    """
    with study(job) as at:
        found = measure_recall(
            at.method,
            at.shards,
            at.plan.episodes,
            at.plan.scoring,
            at.context,
            cache=job.eval.cache_gib,
            readers=job.data.workers,
        )
        said = at.method.caveats(at.header.episodes_seen or 0)
        facts = {"weights": job.weights or "none", **at.facts()}
        facts |= {f"caution {number}": text for number, text in enumerate(said, start=1)}
        at.tell(recall_table(found), lambda: write_recall(Path(job.out), found, facts))
    return 0


class _MapRecorder(EpisodePredictor):
    """Keeps the maps of the current episode, and predicts nothing."""

    maps_of_episode: dict[str, Tensor]

    def query_extras(self, square: Tensor) -> Features:
        return {}  # maps are made of what `encode` gives

    def predict(self, query: Features, supports: Sequence[Features], name: str) -> Prediction:
        self.maps_of_episode = self.maps(query, supports)
        if not self.maps_of_episode:
            raise ConfigError(
                f"{type(self.method).__name__} shows no maps as it is configured, so there is no recall: give weights "
                "of a method that does, such as qgnet trained with method.prior_map or method.guided_map on"
            )
        return Prediction(mask=torch.zeros(self.size, self.size, dtype=torch.bool))


def measure_recall(
    method: Method,
    shards: ShardSet,
    episodes: Sequence[Episode],
    scoring: Scoring,
    context: DistributedContext,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    cache: float = 4,
    readers: int = 2,
) -> Recall:
    """Recall of every map of `method` on the queries of `episodes`, in the frame of the method's input. Collective.

    Maps are brought to that frame as features are (bilinear, corners aligned); only pixels of the class count, so
    unknown ones (255) do not. Every rank gets the recall over all episodes, the same at any number of ranks.

    Raises ConfigError where the method shows no maps, or where no episode is left to measure them on.
    """
    recorder = predictor_for(method, scoring, context, _MapRecorder)

    def covered(result: EpisodeResult) -> tuple[int, dict[str, list[int]]]:  # pixels; map -> those above each threshold
        index = shards.find(result.query)
        mask = class_mask(shards.read(index), result.class_id, scoring.labels)  # [H, W]
        inside = Frame.fit(*mask.shape, scoring.size, scoring.resize).mask(mask) == 1  # [S, S]
        both = {}
        for name, found in recorder.maps_of_episode.items():
            values = at_input(found, scoring.size)[inside]
            both |= {name: above(values, thresholds), f"{TURNED}{name}": above(1 - values, thresholds)}
        return int(inside.sum()), both

    rows = map_episodes(covered, recorder, shards, episodes, scoring, context, cache=cache, readers=readers)
    kept = [(pixels, both) for pixels, both in rows if pixels]
    if not kept:
        raise ConfigError(
            f"no object of the {len(rows)} episodes has a pixel left at {scoring.size} pixels: give a larger eval.size"
        )
    pixels = np.array([count for count, _ in kept])  # [N]
    hits = {name: np.array([both[name] for _, both in kept]) for name in kept[0][1]}  # [N, T] each
    return Recall(
        thresholds=tuple(thresholds),
        of_episodes={name: tuple((h / pixels[:, None]).mean(0).tolist()) for name, h in hits.items()},
        of_pixels={name: tuple((h.sum(0) / pixels.sum()).tolist()) for name, h in hits.items()},
        episodes=len(kept),
        lost=len(rows) - len(kept),
    )


def at_input(found: Tensor, size: int) -> np.ndarray:
    """A map [h, w] at the size of the method's square input, float32 [S, S]."""
    square = interpolate(found[None, None].float(), (size, size), mode="bilinear", align_corners=True)
    return square[0, 0].cpu().numpy()


def above(values: np.ndarray, thresholds: Sequence[float]) -> list[int]:
    """How many of `values` [n] exceed each threshold."""
    return [int(np.count_nonzero(values > threshold)) for threshold in thresholds]


def recall_table(recall: Recall) -> Table:
    """The recall in per cent, means over episodes, with the paper's rows below."""
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


def write_recall(folder: Path, recall: Recall, facts: dict) -> Path:
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
