"""The page of an evaluation: its scores beside the published ones, its protocol, its caveats, pictures of episodes."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fss.data.episodes import Episode
from fss.datasets import dataset_named
from fss.evaluate.examples import EpisodeExample, predict_example
from fss.evaluate.plan import EvaluationPlan
from fss.evaluate.predictor import EpisodePredictor
from fss.evaluate.record import EpisodeResult
from fss.evaluate.scoring import Scoring
from fss.evaluate.summary import format_mean_std, percent, scores_by_seed, summarize
from fss.methods.base import EpisodeMethod
from fss.nn.exports import ExportHeader
from fss.report import class_charts as charts
from fss.report import episode_figures
from fss.report.page import Page, Picture, environment_summary, write_page
from fss.report.published import METRICS, Cell, Published, neighbours, published
from fss.report.tables import NO_VALUE, Table
from fss.tracking.run_dir import RunDir, last_environment, resume_command
from shards.format import Manifest
from shards.read import ShardSet

ROWS = 4  # episodes in a figure


def report(
    run: RunDir,
    predictor: EpisodePredictor,
    shards: ShardSet,
    results: Sequence[EpisodeResult],
    plan: EvaluationPlan,
    header: ExportHeader,
) -> Path:
    """Write the page of an evaluation into the report folder of `run`. For one rank. Returns the path of the HTML.

    predictor: predicts the few episodes in the pictures once more, see `predictor_for`. header: of the weights; empty
    if nothing was trained. Raises ShardError if a sample of the pictures cannot be read.
    """
    manifest, method, device = shards.manifest, predictor.method, predictor.device
    cell = cell_of(method, plan)
    scores = summarize(results, plan.classes, manifest.classes)
    environment = last_environment(run.folder)
    page = Page(
        title=f"{cell.method}, {cell.shots}-shot, on {manifest.name}, {cell.scheme} fold {cell.fold}",
        tables=[headline(scores, results, cell if plan.split == "novel" else None)],
        summary=_summary(method, scores, f"{environment['world_size']} x {device.type}"),
        caveats=caveats(method, manifest, results, plan, header),
        appendix=[_every_class(scores)],
        environment=environment_summary(environment),
        resume=resume_command(environment["command"], environment["world_size"], device.type),
        figures={"cell": asdict(cell), "scoring": asdict(plan.scoring), **scores},
    )
    if plan.split == "novel" and (table := _published_table(cell)):
        page.tables.append(table)
    statement = plan.statement(manifest, header)
    page.tables.append(Table(title="How it was made", header=(), rows=list(statement.items())))
    page.pictures = list(_pictures(run.report, predictor, shards, results, plan))
    return write_page(run.report, page)


def cell_of(method: EpisodeMethod, plan: EvaluationPlan) -> Cell:
    """The cell of the papers' tables in which this score belongs."""
    config = method.config
    return Cell(
        method=config.name,
        scheme=plan.fold.scheme,
        fold=plan.fold.fold,
        shots=plan.shots,
        backbone=getattr(config, "backbone", None),
        size=config.size,
        ablation=method.ablation(),
    )


def headline(scores: Mapping[str, Any], results: Sequence[EpisodeResult], cell: Cell | None) -> Table:
    """The mIoU and FB-IoU of every seed and over the seeds, and below them the paper's scores of the same cell.

    scores: the summary of `results`. cell: None if no published score is over these classes.
    """
    episodes = Counter(result.seed for result in results)
    rows = [
        (f"seed {seed}", *(percent(one[metric]) for metric in METRICS), f"{episodes[seed]:,}")
        for seed, one in scores["seeds"].items()
    ]
    if len(rows) > 1:
        both = [format_mean_std(scores[metric]) for metric in METRICS]
        rows.append(("mean ± standard deviation", *both, f"{len(results):,}"))
    note = "Per cent."
    papers = {metric: published(cell, metric) for metric in METRICS} if cell else {}
    if cell and any(papers.values()):
        source = ", ".join(dict.fromkeys(paper.source for paper in papers.values() if paper))
        rows.append((f"published: {source}", *(_of_fold(paper, cell.fold) for paper in papers.values()), ""))
        means = [METRICS[name] for name, paper in papers.items() if paper and paper.fold(cell.fold) is None]
        note += f" Of {' and '.join(means)} the paper prints the mean over the folds alone." if means else ""
    elif cell:
        note += f" There is no published number for this cell: {_cell_in_words(cell)}."
    else:
        note += " Not the classes of a published score."
    return Table(title="Result", header=("", *METRICS.values(), "episodes"), rows=rows, note=note)


def caveats(
    method: EpisodeMethod,
    manifest: Manifest,
    results: Sequence[EpisodeResult],
    plan: EvaluationPlan,
    header: ExportHeader,
) -> list[str]:
    """Sentences on why the score cannot be compared with the paper's: training, weights, classes, test set."""
    messages = method.caveats(header.episodes_seen or 0)
    if header.selected_on == "novel":
        messages.append(
            "The weights were selected by their score on the novel classes of the fold, as in the reference "
            "implementations: this is an upper bound, not a test."
        )
    unseen = header.unseen_classes
    learned = [] if unseen is None else [c for c in plan.classes if c not in unseen]
    if learned and header.data == manifest.name:
        messages.append(f"The weights have learned {_named(learned, manifest)}: this is no test on novel classes.")
    elif plan.split == "base":
        messages.append("These are the base classes of the fold: a method trained on it has learned them.")
    met = {result.class_id for result in results}
    if missing := [c for c in plan.classes if c not in met]:
        messages.append(f"No episode asked for {_named(missing, manifest)}: such a class counts as 0 in the mIoU.")
    if test := dataset_named(plan.fold.scheme).published_test:
        pairs, fold = test.count(manifest, plan.fold.novel), plan.fold.fold
        if not test.matches(pairs, fold):
            messages.append(
                f"The set shows the novel classes {pairs:,} times, the published test set {test.pairs[fold]:,} times: "
                "the episodes are not those of the papers."
            )
    return messages


def choose(results: Sequence[EpisodeResult], key: Callable[[EpisodeResult], float], count: int) -> list[EpisodeResult]:
    """The `count` results with the lowest `key`, of as many classes as possible, no two of the same query.

    Of equal ones the result with the larger object comes first.
    """
    order = sorted(results, key=lambda r: (key(r), -r.counts[1][1], r.seed, r.number))
    turns: Counter[int] = Counter()  # class -> how many of its results come before
    queries: set[str] = set()
    ranked = []
    for index, result in enumerate(order):
        if result.query not in queries:
            queries.add(result.query)
            ranked.append((turns[result.class_id], index, result))
            turns[result.class_id] += 1
    return [result for *_, result in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def _summary(method: EpisodeMethod, scores: Mapping[str, Any], ranks: str) -> dict[str, str]:
    return {
        "method": method.config.name,
        "ranks": ranks,
        "episodes": f"{scores['episodes']:,} with {scores['images']:,} images",
        "encoder passes": f"{scores['encoder_passes']:,}, {scores['encoder_passes_per_image']:.2f} an image",
        "time": f"{scores['seconds_per_episode']:.3f} s an episode on each rank",
        "settings": ", ".join(f"{name} {value}" for name, value in asdict(method.config).items() if name != "name"),
    }


def _pictures(
    folder: Path, predictor: EpisodePredictor, shards: ShardSet, results: Sequence[EpisodeResult], plan: EvaluationPlan
) -> Iterator[Picture]:
    yield _bars(folder, shards.manifest, results, plan)
    median = statistics.median(result.iou for result in results)
    kinds: dict[str, tuple[str, Callable[[EpisodeResult], float]]] = {
        "best": ("Best episodes", lambda result: -result.iou),
        "median": (f"Median episodes: IoU near {percent(median)} %", lambda result: abs(result.iou - median)),
        "worst": ("Worst episodes", lambda result: result.iou),
    }
    left = list(results)
    for file, (title, key) in kinds.items():
        chosen = choose(left, key, min(ROWS, math.ceil(len(results) / len(kinds))))
        left = [result for result in left if result not in chosen]
        if chosen:
            rows = [predict_example(predictor, shards, _episode(result, shards), plan.scoring) for result in chosen]
            episode_figures.draw(rows, folder / f"{file}.png")
            yield Picture(title=title, file=f"{file}.png", wide=True, caption=_caption(chosen, rows, plan.scoring))


def _caption(chosen: Sequence[EpisodeResult], rows: Sequence[EpisodeExample], scoring: Scoring) -> str:
    """The caption of a figure of episodes, with the keys of their queries."""
    text = "Of different classes where there are several, not chosen by hand. Supports are dimmed outside of the mask."
    if any(row.maps for row in rows):
        text += " Maps are dark at 0 and bright at 1, under the outline of the truth."
    if scoring.resolution != "original":
        side = scoring.resolution
        text += f" The IoU is that at {side} x {side}; the prediction is drawn at original size."
    return f"{text} Queries: {', '.join(result.query for result in chosen)}."


def _bars(folder: Path, manifest: Manifest, results: Sequence[EpisodeResult], plan: EvaluationPlan) -> Picture:
    episodes = Counter(result.class_id for result in results)
    by_seed = scores_by_seed(results, plan.classes).values()
    bars = [
        charts.Bar(
            name=manifest.classes[c], values=tuple(100 * one.per_class[c] for one in by_seed), episodes=episodes[c]
        )
        for c in plan.classes
    ]
    charts.class_bars(bars, folder / "classes.png", mean=100 * statistics.fmean(one.miou for one in by_seed))
    dots = " A dot is one seed, the bar their mean." if len(by_seed) > 1 else ""
    caption = f"Intersection over union by class, summed over its episodes; in brackets their number.{dots}"
    return Picture(title="Classes", file="classes.png", caption=caption, wide=True)


def _every_class(scores: Mapping[str, Any]) -> Table:
    rows = [(name, format_mean_std(row["iou"]), f"{row['episodes']:,}") for name, row in scores["classes"].items()]
    return Table(title="Every class", header=("class", "IoU, %", "episodes"), rows=rows, folded=True)


def _published_table(cell: Cell) -> Table | None:
    """All published scores for the same data, backbone, size and shots; None if there are none."""
    rows = [
        (
            f"{row.method}, {row.ablation}" if row.ablation else row.method,
            METRICS[metric],
            _score(row.fold(cell.fold)),
            _score(row.mean),
            row.source,
        )
        for metric in METRICS
        for row in neighbours(cell, metric)
    ]
    if not rows:
        return None
    header = ("method", "metric", f"fold {cell.fold}", "mean of folds", "source")
    note = "Published scores for the same data, backbone, training size and shots; their protocols differ."
    return Table(title="What the papers print", header=header, rows=rows, note=note, folded=True)


def _episode(result: EpisodeResult, shards: ShardSet) -> Episode:
    supports = tuple(shards.find(key) for key in result.supports)
    return Episode(result.seed, result.number, result.class_id, shards.find(result.query), supports)


def _named(classes: Sequence[int], manifest: Manifest, most: int = 5) -> str:
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    return ", ".join(manifest.classes[c] for c in classes[:most]) + more


def _cell_in_words(cell: Cell) -> str:
    network = [cell.method, cell.ablation, cell.backbone, f"{cell.size} px" if cell.size else None]
    return ", ".join(filter(None, [*network, f"{cell.shots}-shot", f"{cell.scheme} fold {cell.fold}"]))


def _of_fold(paper: Published | None, fold: int) -> str:
    if paper is None:
        return NO_VALUE
    return _score(paper.mean if paper.fold(fold) is None else paper.fold(fold))


def _score(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:g}"
