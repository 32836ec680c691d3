"""The quality of the masks that GF-SAM merges (section A.5.2): the best possible choice, and the errors of points."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from fss.methods.base import Features, Prediction
from fss.methods.gfsam import GFSAM
from fss.nn.alignment import Alignment, prompts
from fss.nn.mask_logits import union
from fss.report.tables import Table, markdown_table
from shards.format import write_whole
from shards.read import ShardSet

MEASURES = {
    "prediction_iou": "IoU of the prediction",
    "best_iou": "IoU of the best single mask",
    "all_iou": "IoU of all masks together",
    "all_recall": "recall of all masks together",
    "all_precision": "precision of all masks together",
    "error_iou": "IoU of the masks of points on the object with those of points off it (Fig. 7)",
    "error_rate": "share of points off the object under the masks of points on it (Fig. 8)",
}
"""Key -> description of the fractions that are measured of every episode. A row also has 'error_points', the number of
Fig. 9."""
Row = dict[str, Any]


def analyse(job: StudyJob) -> int:
    """Analyse the masks on the episodes of an evaluation of the job, and write the result into `job.out`; returns 0.

    Raises UserError or ShardError if an option, a file or the data do not fit.
    """
    if job.method.name != "gfsam":
        raise ConfigError(f"method is {job.method.name}, which merges no masks: give gfsam")
    with open_study(job) as study:
        assert isinstance(study.method, GFSAM)
        rows = mask_rows(
            study.method,
            study.shards,
            study.plan.episodes,
            study.plan.scoring,
            study.context,
            cache=job.eval.cache_gib,
            readers=worker_count(job.data, threads=1),
        )
        facts = {**study.statement(), "caveats": study.method.caveats(0)}
        study.publish(table(rows), lambda: write(Path(job.out), rows, facts))
    return 0


class _CandidateRecorder(EpisodePredictor):
    """Stores the points and the candidate masks of the current episode."""

    method: GFSAM
    alignment: Alignment
    logits: Tensor

    def predict_unchecked(self, query: Features, supports: Sequence[Features]) -> Prediction:
        self.alignment, self.logits = self.method.candidates(query, list(supports))
        return self.method.merge(query, self.alignment, self.logits)


def mask_rows(
    method: GFSAM,
    shards: ShardSet,
    episodes: Sequence[Episode],
    scoring: Scoring,
    context: DistributedContext,
    *,
    cache: float = 4,
    readers: int = 2,
) -> list[Row]:
    """Measure MEASURES of every episode; every rank gets all rows in the order of the episodes. Collective.

    The IoU of the prediction is scored by `scoring`, everything else in the square that the method sees, without pixels
    of unknown class.
    """
    recorder = predictor_for(method, scoring, context, _CandidateRecorder)

    def row(result: EpisodeResult) -> Row:
        mask = class_mask(shards.read(shards.find(result.query)), result.class_id, scoring.labels)  # [H, W]
        height, width = mask.shape
        truth = Frame.fit(height, width, scoring.size, scoring.resize).mask(mask)  # [S, S]
        alignment = recorder.alignment
        pixels = prompts(alignment.points, alignment.grid, scoring.size, method.config)
        row = {"class": result.class_id, "query": result.query, "points": len(pixels)}
        quality = of_masks(recorder.logits, pixels, torch.from_numpy(truth).to(recorder.logits.device))
        return row | {"prediction_iou": result.iou} | quality

    return map_episodes(row, recorder, shards, episodes, scoring, context, cache=cache, readers=readers)


def of_masks(logits: Tensor, pixels: Tensor, truth: Tensor) -> Row:
    """Measure masks against a truth uint8 [S, S] of 0, 1 and 255.

    logits: [N, s, s], the masks of the prompts at `pixels` [N, 2] (x, y).
    """
    size, known, inside = len(truth), truth != 255, truth == 1
    area = int(inside.sum())

    def merged(chosen: Tensor) -> Tensor:
        return union(logits, chosen, size) & known

    def iou(a: Tensor, b: Tensor) -> float:
        return int((a & b).sum()) / max(int((a | b).sum()), 1)

    every = torch.arange(len(logits), device=logits.device)
    whole = merged(every)
    hit = int((whole & inside).sum())
    x, y = pixels.to(truth.device).unbind(1)
    on = inside[y, x]  # [N]
    fore, back = merged(every[on]), merged(every[~on & known[y, x]])
    covered = fore[y, x]
    wrong = int((covered & ~on).sum())
    return {
        "best_iou": max((iou(merged(one[None]), inside) for one in every), default=0.0),
        "all_iou": iou(whole, inside),
        "all_recall": hit / max(area, 1),
        "all_precision": hit / max(int(whole.sum()), 1),
        "error_iou": iou(fore, back),
        "error_rate": wrong / max(int(covered.sum()), 1),
        "error_points": wrong,
    }


def table(rows: Sequence[Row]) -> Table:
    """Means and medians over the episodes."""
    lines = []
    for name, words in MEASURES.items():
        values = [100 * row[name] for row in rows]
        lines.append((words, f"{statistics.fmean(values):.1f}", f"{statistics.median(values):.1f}"))
    note = f"Per cent, over {len(rows):,} episodes of equal weight."
    return Table(title="Masks that GF-SAM merges", header=("", "mean", "median"), rows=lines, note=note)


def write(folder: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> Path:
    """Write masks.json (every episode, and `facts`) and masks.md into `folder`; returns the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "masks.json", json.dumps({**facts, "rows": list(rows)}, indent=1).encode())
    write_whole(folder / "masks.md", (markdown_table(table(rows)) + "\n").encode())
    return folder / "masks.md"
