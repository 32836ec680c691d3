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
from fss.engine.dist import World
from fss.engine.evaluation.measure import Scoring
from fss.engine.evaluation.record import Result
from fss.engine.reports import charts
from fss.engine.reports.page import Table, markdown_table
from fss.engine.reports.published import published_recall
from fss.engine.studies.study import StudyJob, look, study
from fss.errors import ConfigError
from fss.methods.base import Features, Method
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
            at.plan.how,
            at.world,
            cache=job.eval.cache_gib,
            readers=job.data.workers,
        )
        said = at.method.cautions(int(at.header.get("episodes_seen", 0)))
        facts = {"weights": job.weights or "none", **at.facts()}
        facts |= {f"caution {number}": text for number, text in enumerate(said, start=1)}
        at.tell(recall_table(found), lambda: write_recall(Path(job.out), found, facts))
    return 0


class _Maps:
    """Stands before a method in `measure`: keeps the maps of the episode at hand, and leaves out the prediction."""

    encodes_queries = False  # maps are made of what `encode` gives

    def __init__(self, method: Method, size: int) -> None:
        self._method = method
        self._size = size
        self.found: dict[str, Tensor] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._method, name)

    def predict(self, query: Features, supports: list[Features]) -> Tensor:
        self.found = self._method.maps(query, supports)
        if not self.found:
            raise ConfigError(
                f"{type(self._method).__name__} shows no maps as it is configured, so there is no recall: give weights "
                "of a method that does, such as qgnet trained with method.prior_map or method.guided_map on"
            )
        return torch.zeros(1, 2, self._size, self._size)


def measure_recall(
    method: Method,
    shards: ShardSet,
    episodes: Sequence[Episode],
    how: Scoring,
    world: World,
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
    maps = _Maps(method, how.size)

    def covered(result: Result) -> tuple[int, dict[str, list[int]]]:  # pixels; map -> those above each threshold
        index = shards.find(result.query)
        mask = class_mask(shards.read(index), result.class_id, how.labels)  # [H, W]
        inside = Frame.fit(*mask.shape, how.size, how.resize).mask(mask) == 1  # [S, S]
        both = {}
        for name, found in maps.found.items():
            values = at_input(found, how.size)[inside]
            both |= {name: above(values, thresholds), f"{TURNED}{name}": above(1 - values, thresholds)}
        return int(inside.sum()), both

    rows = look(covered, maps, shards, episodes, how, world, cache=cache, readers=readers)
    kept = [(pixels, both) for pixels, both in rows if pixels]
    if not kept:
        raise ConfigError(
            f"no object of the {len(rows)} episodes has a pixel left at {how.size} pixels: give a larger eval.size"
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
