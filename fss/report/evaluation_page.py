"""An evaluation told to people: its score beside the papers', how it was made, what it is not, how it looks."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

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
from fss.report import episode_figures as overlays
from fss.report.page import Page, Picture, Table, write_page
from fss.report.published import METRICS, Cell, Published, neighbours, published
from fss.tracking.run_dir import RunDir, last_environment, resume_command
from shards.format import Manifest
from shards.read import ShardSet

ROWS = 4  # episodes of a picture
NOTHING = "\N{EM DASH}"


def report(
    run: RunDir,
    predictor: EpisodePredictor,
    shards: ShardSet,
    results: Sequence[EpisodeResult],
    plan: EvaluationPlan,
    header: ExportHeader,
) -> Path:
    """Write the page of an evaluation into the report folder of `run`; for one rank. Returns the path of the HTML.

    A few episodes are predicted again for the pictures.

    header: of the weights; empty if nothing was trained.
    Raises ShardError where a sample of the pictures cannot be read.
    """
    manifest, method, device = shards.manifest, predictor.method, predictor.device
    cell = cell_of(method, plan)
    found = summarize(results, plan.classes, manifest.classes)
    environment = last_environment(run.folder)
    page = Page(
        title=f"{cell.method}, {cell.shots}-shot, on {manifest.name}, {cell.scheme} fold {cell.fold}",
        tables=[headline(found, results, cell if plan.split == "novel" else None)],
        ran=_what_ran(method, found, f"{environment['world_size']} x {device.type}"),
        caveats=caveats(method, manifest, results, plan, header),
        appendix=[_every_class(found)],
        environment={
            **{
                k: v for k, v in environment.items() if v is not None and k not in ("packages", "command", "world_size")
            },
            **environment["packages"],
        },
        resume=resume_command(environment["command"], environment["world_size"], device.type),
        figures={"cell": asdict(cell), "scoring": asdict(plan.scoring), **found},
    )
    if plan.split == "novel" and (beside := _in_print(cell)):
        page.tables.append(beside)
    statement = plan.statement(manifest, header)
    page.tables.append(Table(title="How it was made", header=(), rows=list(statement.items())))
    page.pictures = list(_pictures(run.report, predictor, shards, results, plan))
    return write_page(run.report, page)


def cell_of(method: EpisodeMethod, plan: EvaluationPlan) -> Cell:
    """Where the papers would print this score."""
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


def headline(found: Mapping, results: Sequence[EpisodeResult], cell: Cell | None) -> Table:
    """mIoU and FB-IoU of every seed and over the seeds, the paper's figures of the same cell below them.

    found: the outcome of `results`. cell: None where the classes are not those of a published score.
    """
    episodes = Counter(result.seed for result in results)
    rows = [
        (f"seed {seed}", *(percent(one[metric]) for metric in METRICS), f"{episodes[seed]:,}")
        for seed, one in found["seeds"].items()
    ]
    if len(rows) > 1:
        both = [format_mean_std(found[metric]) for metric in METRICS]
        rows.append(("mean ± standard deviation", *both, f"{len(results):,}"))
    papers = {metric: published(cell, metric) if cell else None for metric in METRICS}
    note = "Per cent."
    if any(papers.values()):
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
    """Why the score must not be read as the paper's: training, choice of weights, classes, test set."""
    said = method.caveats(header.episodes_seen or 0)
    if header.selected_on == "novel":
        said.append(
            "The weights were selected by their score on the novel classes of the fold, as the published programs do: "
            "this is an upper bound, not a test."
        )
    unseen = header.unseen_classes
    learned = [] if unseen is None else [c for c in plan.classes if c not in unseen]
    if learned and header.data == manifest.name:
        said.append(f"The weights have learned {_named(learned, manifest)}: this is no test on novel classes.")
    elif plan.split == "base":
        said.append("These are the base classes of the fold: a method trained on it has learned them.")
    met = {result.class_id for result in results}
    if missing := [c for c in plan.classes if c not in met]:
        said.append(f"No episode asked for {_named(missing, manifest)}: such a class counts as 0 in the mIoU.")
    if test := dataset_named(plan.fold.scheme).published_test:
        pairs, fold = test.count(manifest, plan.fold.novel), plan.fold.fold
        if not test.matches(pairs, fold):
            said.append(
                f"The set shows the novel classes {pairs:,} times, the published test set {test.pairs[fold]:,} times: "
                "the episodes are not those of the papers."
            )
    return said


def choose(
    results: Sequence[EpisodeResult], worth: Callable[[EpisodeResult], float], count: int
) -> list[EpisodeResult]:
    """The `count` results of least `worth`, of as many classes as there are, no two of the same query.

    Of equals the one with more object in it comes first: it shows more.
    """
    order = sorted(results, key=lambda r: (worth(r), -r.counts[1][1], r.seed, r.number))
    turns: Counter[int] = Counter()  # class -> how many of it came before
    queries: set[str] = set()
    ranked = []
    for place, result in enumerate(order):
        if result.query not in queries:
            queries.add(result.query)
            ranked.append((turns[result.class_id], place, result))
            turns[result.class_id] += 1
    return [result for *_, result in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def _what_ran(method: EpisodeMethod, found: Mapping, ranks: str) -> dict[str, str]:
    return {
        "method": method.config.name,
        "ranks": ranks,
        "episodes": f"{found['episodes']:,} with {found['images']:,} images",
        "encoder passes": f"{found['encoder_passes']:,}, {found['encoder_passes_per_image']:.2f} an image",
        "time": f"{found['seconds_per_episode']:.3f} s an episode on each rank",
        "settings": ", ".join(f"{name} {value}" for name, value in asdict(method.config).items() if name != "name"),
    }


def _pictures(
    folder: Path, predictor: EpisodePredictor, shards: ShardSet, results: Sequence[EpisodeResult], plan: EvaluationPlan
) -> Iterator[Picture]:
    yield _bars(folder, shards.manifest, results, plan)
    blocks_2_3 = statistics.median(result.iou for result in results)
    kinds: dict[str, tuple[str, Callable[[EpisodeResult], float]]] = {
        "best": ("Best episodes", lambda result: -result.iou),
        "median": (f"Median episodes: IoU near {percent(blocks_2_3)} %", lambda result: abs(result.iou - blocks_2_3)),
        "worst": ("Worst episodes", lambda result: result.iou),
    }
    left = list(results)
    for file, (title, worth) in kinds.items():
        chosen = choose(left, worth, min(ROWS, math.ceil(len(results) / len(kinds))))
        left = [result for result in left if result not in chosen]
        if chosen:
            rows = [predict_example(predictor, shards, _episode(result, shards), plan.scoring) for result in chosen]
            overlays.episodes(rows, folder / f"{file}.png")
            yield Picture(title=title, file=f"{file}.png", wide=True, caption=_caption(chosen, rows, plan.scoring))


def _caption(chosen: Sequence[EpisodeResult], rows: Sequence[EpisodeExample], how: Scoring) -> str:
    """What can be seen, and which episodes it is of."""
    text = "Of different classes where there are several, not chosen by hand. Supports are dimmed outside of the mask."
    if any(row.maps for row in rows):
        text += " Maps go from 0, dark, to 1, bright, under the outline of the truth."
    if how.resolution != "original":
        text += f" The IoU is that at {how.resolution} x {how.resolution}; drawn is the prediction at original size."
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
    caption = f"Intersection over union by class, summed over its episodes; in brackets how many there were.{dots}"
    return Picture(title="Classes", file="classes.png", caption=caption, wide=True)


def _every_class(found: Mapping) -> Table:
    rows = [(name, format_mean_std(about["iou"]), f"{about['episodes']:,}") for name, about in found["classes"].items()]
    return Table(title="Every class", header=("class", "IoU, %", "episodes"), rows=rows, folded=True)


def _in_print(cell: Cell) -> Table | None:
    """All that the papers print for the same data, backbone, size and shots."""
    rows = [
        (
            f"{row.method}, {row.ablation}" if row.ablation else row.method,
            METRICS[metric],
            _figure(row.fold(cell.fold)),
            _figure(row.mean),
            row.source,
        )
        for metric in METRICS
        for row in neighbours(cell, metric)
    ]
    if not rows:
        return None
    header = ("method", "metric", f"fold {cell.fold}", "mean of folds", "source")
    note = "Published figures for the same data, backbone, training size and shots; their protocols differ."
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
        return NOTHING
    return _figure(paper.mean if paper.fold(fold) is None else paper.fold(fold))


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"
