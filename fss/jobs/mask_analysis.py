"""How good the masks are that GF-SAM chooses from (section A.5.2): what a better choice could gain, how points err."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fss.data.episodes import Episode
from fss.data.transforms import Frame, class_mask
from fss.distributed.context import DistributedContext
from fss.errors import ConfigError
from fss.evaluate.measure import predictor_for
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.record import EpisodeResult
from fss.evaluate.scoring import Scoring
from fss.jobs.study import StudyJob, map_episodes, study
from fss.methods.base import Features, Prediction
from fss.methods.gfsam import GFSAM
from fss.nn.alignment import Alignment, prompts
from fss.nn.mask_logits import union
from fss.report.tables import Table, markdown_table
from shards.format import write_whole
from shards.read import ShardSet

WORDS = {
    "prediction_iou": "IoU of the prediction",
    "best_iou": "IoU of the best single mask",
    "all_iou": "IoU of all masks together",
    "all_recall": "recall of all masks together",
    "all_precision": "precision of all masks together",
    "error_iou": "IoU of the masks of points on the object with those of points off it (Fig. 7)",
    "error_rate": "share of points off the object under the masks of points on it (Fig. 8)",
}
"""What is measured of every episode, as a fraction; 'error_points', the number of Fig. 9, stands beside them."""
Row = dict[str, float]


def analyse(job: StudyJob) -> int:
    """Analyse the masks of the episodes that an evaluation of the job would have, and write it down; returns 0.

    Raises UserError or ShardError for what a user can mend.
    """
    if job.method.name != "gfsam":
        raise ConfigError(f"method is {job.method.name}, which chooses from no masks: give gfsam")
    with study(job) as at:
        rows = mask_rows(
            at.method,
            at.shards,
            at.plan.episodes,
            at.plan.scoring,
            at.context,
            cache=job.eval.cache_gib,
            readers=job.data.workers,
        )
        facts = {**at.facts(), "caveats": at.method.caveats(0)}
        at.tell(table(rows), lambda: write(Path(job.out), rows, facts))
    return 0


class _CandidateRecorder(EpisodePredictor):
    """Keeps points and masks of the current episode, among which GF-SAM chooses."""

    method: GFSAM
    alignment: Alignment
    logits: Tensor

    def predict(self, query: Features, supports: Sequence[Features], name: str) -> Prediction:
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
    """What WORDS says of every episode, in their order, on every rank. Collective.

    The prediction's IoU is scored as `how` says; the others in the square that the method sees, where pixels of
    unknown class count nowhere.
    """
    recorder = predictor_for(method, scoring, context, _CandidateRecorder)

    def row(result: EpisodeResult) -> Row:
        mask = class_mask(shards.read(shards.find(result.query)), result.class_id, scoring.labels)  # [H, W]
        truth = Frame.fit(*mask.shape, scoring.size, scoring.resize).mask(mask)  # [S, S]
        found = recorder.alignment
        pixels = prompts(found.points, found.grid, scoring.size, method.config)
        about = {"class": result.class_id, "query": result.query, "points": len(pixels)}
        quality = of_masks(recorder.logits, pixels, torch.from_numpy(truth).to(recorder.logits.device))
        return about | {"prediction_iou": result.iou} | quality

    return map_episodes(row, recorder, shards, episodes, scoring, context, cache=cache, readers=readers)


def of_masks(logits: Tensor, pixels: Tensor, truth: Tensor) -> Row:
    """What masks, logits [N, s, s], of prompts at `pixels` [N, 2] (x, y) are worth for a truth uint8 [S, S]."""
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
    for name, words in WORDS.items():
        values = [100 * row[name] for row in rows]
        lines.append((words, f"{statistics.fmean(values):.1f}", f"{statistics.median(values):.1f}"))
    note = f"Per cent, over {len(rows):,} episodes, each of which counts alike."
    return Table(title="Masks that GF-SAM chooses from", header=("", "mean", "median"), rows=lines, note=note)


def write(folder: Path, rows: Sequence[Row], facts: dict) -> Path:
    """Write masks.json (every episode, and `facts`) and masks.md into `folder`; returns the path of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "masks.json", json.dumps({**facts, "rows": list(rows)}, indent=1).encode())
    write_whole(folder / "masks.md", (markdown_table(table(rows)) + "\n").encode())
    return folder / "masks.md"
