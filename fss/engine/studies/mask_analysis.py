"""How good the masks are that GF-SAM chooses from (section A.5.2): what a better choice could gain, how points err."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fss.data.episodes import Episode
from fss.data.transforms import Frame, class_mask
from fss.engine.dist import World
from fss.engine.evaluation.measure import Scoring
from fss.engine.evaluation.record import Result
from fss.engine.reports.page import Table, markdown_table
from fss.engine.studies.study import StudyJob, look, study
from fss.errors import ConfigError
from fss.methods.base import Features
from fss.methods.gfsam import GFSAM
from fss.nn.alignment import prompts
from fss.nn.mask_logits import union
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
            at.plan.how,
            at.world,
            cache=job.eval.cache_gib,
            readers=job.data.workers,
        )
        facts = {**at.facts(), "cautions": at.method.cautions(0)}
        at.tell(table(rows), lambda: write(Path(job.out), rows, facts))
    return 0


class _Kept:
    """Stands before GF-SAM in `measure`: keeps points and masks of the episode at hand."""

    def __init__(self, method: GFSAM) -> None:
        self._method = method

    def __getattr__(self, name: str) -> object:
        return getattr(self._method, name)

    def predict(self, query: Features, supports: list[Features]) -> Tensor:
        self.alignment, self.logits = self._method.candidates(query, supports)
        return self._method.merge(query, self.alignment, self.logits)


def mask_rows(
    method: GFSAM,
    shards: ShardSet,
    episodes: Sequence[Episode],
    how: Scoring,
    world: World,
    *,
    cache: float = 4,
    readers: int = 2,
) -> list[Row]:
    """What WORDS says of every episode, in their order, on every rank. Collective.

    The prediction's IoU is scored as `how` says; the others in the square that the method sees, where pixels of
    unknown class count nowhere.
    """
    kept = _Kept(method)

    def row(result: Result) -> Row:
        mask = class_mask(shards.read(shards.find(result.query)), result.class_id, how.labels)  # [H, W]
        truth = Frame.fit(*mask.shape, how.size, how.resize).mask(mask)  # [S, S]
        found = kept.alignment
        pixels = prompts(found.points, found.grid, how.size, method.config)
        about = {"class": result.class_id, "query": result.query, "points": len(pixels)}
        quality = of_masks(kept.logits, pixels, torch.from_numpy(truth).to(kept.logits.device))
        return about | {"prediction_iou": result.iou} | quality

    return look(row, kept, shards, episodes, how, world, cache=cache, readers=readers)


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
