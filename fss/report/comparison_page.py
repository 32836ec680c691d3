"""The page that compares finished evaluations: one table a data set, number of shots and protocol."""

import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fss.compat import CELL, REPORT, RESULTS, current_fields, current_options
from fss.errors import RunError
from fss.report import class_charts as charts
from fss.report.compute_hours import evaluation_hours, training_hours
from fss.report.page import Page, Picture, write_page
from fss.report.published import Cell, published
from fss.report.tables import NO_VALUE, Table, csv_table, latex_table
from shards.format import write_whole

COMPARABLE_SCORING = ("resolution", "labels", "ignore_255")  # fields of a scoring that scores in one table share
SHOWN_ELSEWHERE = ("name", "size", "backbone")  # method options with a column of their own, or in every label


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished evaluation."""

    folder: Path
    cell: Cell
    options: dict[str, Any]
    """Options of its method; for a file of weights, whether one was given."""
    results: dict[str, Any]
    """Content of results.json."""
    episodes_digest: str
    """Digest of the list of its episodes."""
    caveats: tuple[str, ...]

    @property
    def backbone(self) -> str:
        """Name of the backbone; a dash if the method has no such option."""
        return self.cell.backbone or NO_VALUE


@dataclass(frozen=True, kw_only=True)
class Row:
    """The evaluations of one method with one set of options, by fold; those of one fold differ in their training."""

    label: str
    backbone: str
    folds: dict[int, list[Entry]]

    def fold(self, fold: int, metric: str) -> list[float]:
        """The scores of a fold in per cent, one a run."""
        return [100 * entry.results[metric]["mean"] for entry in self.folds.get(fold, [])]

    def mean(self, metric: str) -> float:
        """The mean in per cent over the folds of the row, each the mean over its runs."""
        return statistics.fmean(statistics.fmean(self.fold(fold, metric)) for fold in self.folds)

    @property
    def entries(self) -> list[Entry]:
        """All evaluations of the row, by fold."""
        return [entry for fold in sorted(self.folds) for entry in self.folds[fold]]


def compare(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of the evaluations in `folders` into `out`, and its tables as Markdown, CSV and LaTeX.

    Returns the path of the HTML. Raises RunError if a folder does not contain a finished evaluation.
    """
    entries = [read(Path(folder)) for folder in folders]
    out.mkdir(parents=True, exist_ok=True)
    summary = {"evaluations": len(entries), "in": ", ".join(str(entry.folder) for entry in entries)}
    page = Page(title="Few-shot segmentation: methods compared", summary=summary)
    for number, (title, group) in enumerate(_comparable(entries)):
        rows = _rows(group)
        page.tables.append(_scores(title, rows))
        page.caveats += _group_caveats(title, group)
        page.pictures.append(_dots(out, number, title, rows))
        page.pictures += _worst(out, number, rows)
        page.appendix += [_costs(title, rows), _protocols(title, rows)]
    page.caveats += _run_caveats(entries)
    for suffix, formatted in (("csv", csv_table), ("tex", latex_table)):
        write_whole(out / f"tables.{suffix}", "\n".join(map(formatted, page.tables)).encode())
    return write_page(out, page)


def read(folder: Path) -> Entry:
    """Read the evaluation in `folder`. Raises RunError if there is none, it is not finished or its page is missing."""
    if (folder / "results.json").exists() and not (folder / "report" / "report.json").exists():
        raise RunError(f"{folder} has no page: run its evaluation again with --run.report true, which writes it")
    try:
        results = current_fields(json.loads((folder / "results.json").read_text()), RESULTS)
        report = current_fields(json.loads((folder / "report" / "report.json").read_text()), REPORT)
        run = current_options(json.loads((folder / "run.json").read_text()))
        cell, episodes_digest = Cell(**current_fields(report["figures"]["cell"], CELL)), run["episodes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{folder} holds no finished evaluation ({error}): give run directories of launch/evaluate.py"
        ) from None
    options = {key.removeprefix("method."): value for key, value in run.items() if key.startswith("method.")}
    return Entry(
        folder=folder,
        cell=cell,
        results=results,
        episodes_digest=episodes_digest,
        options={key: bool(value) if key.endswith("_weights") else value for key, value in options.items()},
        caveats=tuple(report["caveats"]),
    )


def _comparable(entries: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Groups of evaluations with comparable scores; the title of each names what its members share."""
    groups = defaultdict(list)
    for entry in entries:
        scoring = tuple(entry.results["scoring"][name] for name in COMPARABLE_SCORING)
        groups[entry.results["protocol"]["data"], entry.cell.scheme, entry.cell.shots, scoring].append(entry)
    for (data, scheme, shots, (resolution, labels, ignored)), group in groups.items():
        kind = f"{data}, scheme {scheme}, {shots}-shot"
        yield f"{kind}; scored at {resolution}, masks {labels}, 255 {'not ' if ignored else ''}counted", group


def _rows(entries: Sequence[Entry]) -> list[Row]:
    """One row for each method, backbone, size and set of options, the lowest score first."""
    groups = defaultdict(list)
    for entry in entries:
        groups[json.dumps(entry.options, sort_keys=True)].append(entry)
    rows = []
    for group in groups.values():
        folds = defaultdict(list)
        for entry in group:
            folds[entry.cell.fold].append(entry)
        rows.append(Row(label=_label(group[0], entries), backbone=group[0].backbone, folds=dict(folds)))
    return sorted(rows, key=lambda row: row.mean("miou"))


def _label(entry: Entry, entries: Sequence[Entry]) -> str:
    """The method, and the options in which runs of it differ, without weights that follow from other options."""
    same = [e.options for e in entries if e.cell.method == entry.cell.method]
    differing = [
        key
        for key, value in entry.options.items()
        if key not in SHOWN_ELSEWHERE and any(other.get(key) != value for other in same)
    ]

    def kinds(keys: Sequence[str]) -> int:
        return len({tuple(str(options.get(key)) for key in keys) for options in same})

    for key in [key for key in differing if key.endswith("_weights")]:
        others = [other for other in differing if other != key]
        if kinds(others) == kinds(differing):
            differing = others
    values = ", ".join(f"{key} {entry.options[key]}" for key in differing)
    return entry.cell.method + (f" ({values})" if values else "")


def _scores(title: str, rows: Sequence[Row]) -> Table:
    """The table of scores in the layout of the papers: folds, their mean, FB-IoU, and the published mean."""
    folds = sorted({fold for row in rows for fold in row.folds})
    several = len(folds) > 1
    lines = []
    for row in rows:
        cells = [_over_runs(row.fold(fold, "miou")) for fold in folds]
        cells += [f"{row.mean('miou'):.2f}"] if several else []
        lines.append((row.label, row.backbone, *cells, f"{row.mean('fb_iou'):.2f}", _published(row)))
    columns = [f"fold {fold}" for fold in folds] + (["mean"] if several else [])
    header = ("", "backbone", *columns, "FB-IoU", "published")
    note = (
        "mIoU on novel classes, per cent; ± is the standard deviation over runs, in brackets their number. Published "
        "is the mean over the folds of the row, or over all folds if the paper prints no other."
    )
    return Table(title=title, header=header, rows=lines, note=note)


def _over_runs(values: Sequence[float]) -> str:
    if not values:
        return NO_VALUE
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f} ({len(values)})"


def _published(row: Row) -> str:
    """The paper's mIoU over the folds of the row, or over all folds if it prints only their mean."""
    paper = published(row.entries[0].cell, "miou")
    if paper is None:
        return NO_VALUE
    if len(row.folds) < len(paper.folds):
        return f"{statistics.fmean(paper.folds[fold] for fold in row.folds):.1f}"
    return f"{paper.mean:.1f}"


def _group_caveats(title: str, entries: Sequence[Entry]) -> list[str]:
    """Sentences on differences between the evaluations of one table."""
    messages = []
    for fold in sorted({entry.cell.fold for entry in entries}):
        if len({entry.episodes_digest for entry in entries if entry.cell.fold == fold}) > 1:
            messages.append(f"{title}: the runs of fold {fold} were not evaluated on the same episodes.")
    folds = {tuple(sorted(row.folds)) for row in _rows(entries)}
    if len(folds) > 1:
        messages.append(f"{title}: not every method has every fold, so their means are not of the same classes.")
    return messages


def _run_caveats(entries: Sequence[Entry]) -> list[str]:
    """The caveats of all runs, each once with the methods that have it."""
    methods: dict[str, dict[str, None]] = defaultdict(dict)
    for entry in entries:
        for text in entry.caveats:
            methods[text][entry.cell.method] = None
    return [f"{', '.join(names)}: {text}" for text, names in methods.items()]


def _dots(out: Path, number: int, title: str, rows: Sequence[Row]) -> Picture:
    """Draw the classes of all folds, one dot for each row of the table."""
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        values = defaultdict(list)
        for entry in row.entries:
            for name, result in entry.results["classes"].items():
                values[name].append(100 * result["iou"]["mean"])
        for name, ious in values.items():
            scores[name][row.label] = statistics.fmean(ious)
    file = f"classes_{number}.png"
    charts.class_dots(scores, [row.label for row in rows], out / file)
    caption = f"Intersection over union by class, per cent. {title}."
    return Picture(title="Classes", file=file, caption=caption, wide=True)


def _worst(out: Path, number: int, rows: Sequence[Row]) -> Iterator[Picture]:
    """Copy the figures of the worst episodes, one for each row of the table, of its first run."""
    for index, row in enumerate(rows):
        entry = row.entries[0]
        picture = entry.folder / "report" / "worst.png"
        if picture.exists():
            file = f"worst_{number}_{index}.png"
            shutil.copyfile(picture, out / file)
            yield Picture(
                title=f"{row.label}: worst episodes",
                file=file,
                wide=True,
                caption=f"Of {entry.folder.name}, fold {entry.cell.fold}: different classes, not chosen by hand.",
            )


def _costs(title: str, rows: Sequence[Row]) -> Table:
    """The table of parameters, operations, times and device-hours."""
    lines = []
    for row in rows:
        first = row.entries[0].results
        sizes = {**first.get("parameters", {}), "flops": first.get("flops")}  # of earlier versions: neither
        seconds = statistics.median(entry.results["seconds_per_episode"] for entry in row.entries)
        counts = [_scaled(sizes.get(name), unit) for name, unit in (("trained", 1e6), ("frozen", 1e6), ("flops", 1e9))]
        hours = [_hours(row, hours_of) for hours_of in (training_hours, evaluation_hours)]
        lines.append((row.label, *counts, f"{seconds:.3f}", f"{first['encoder_passes_per_image']:.2f}", *hours))
    header = (
        "",
        "trained, M",
        "frozen, M",
        "GFLOP",
        "s / episode and rank",
        "encoder passes / image",
        "hours of training",
        "of evaluation",
    )
    note = (
        "Parameters in millions. GFLOP of an episode of one shot, both images encoded; a product and a sum are two "
        "operations. Hours are the mean over the runs of the row: of all optimizer steps behind the weights, prior "
        "extractor and base learner included, and of all episodes; on a CPU, of every thread of every rank."
    )
    return Table(title=f"Cost: {title}", header=header, rows=lines, note=note)


def _scaled(count: float | None, unit: float) -> str:
    return NO_VALUE if count is None else f"{count / unit:.2f}"


def _hours(row: Row, hours_of: Callable[[Path], dict[str, float] | None]) -> str:
    """The mean hours over the runs of the row; a dash if a run has no record of its hours."""
    each = [hours for entry in row.entries if (hours := hours_of(entry.folder)) is not None]
    if len(each) < len(row.entries):
        return NO_VALUE
    mean = {device: sum(hours.get(device, 0) for hours in each) / len(each) for device in dict.fromkeys(chain(*each))}
    return " + ".join(f"{value:.{0 if value >= 10 else 2}f} {device}" for device, value in mean.items())


def _protocols(title: str, rows: Sequence[Row]) -> Table:
    """The table of the protocol of each row."""
    protocols = [(row.label, {"size": row.entries[0].cell.size, **row.entries[0].results["protocol"]}) for row in rows]
    keys = list(dict.fromkeys(key for _, protocol in protocols for key in protocol))
    return Table(
        title=f"How it was made: {title}",
        folded=True,
        header=("", *(label for label, _ in protocols)),
        rows=[(key, *(str(protocol.get(key, NO_VALUE)) for _, protocol in protocols)) for key in keys],
    )
