"""Finished evaluations beside each other and beside the papers: one table a data set, number of shots and protocol."""

import csv
import io
import json
import shutil
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fss.compat import CELL, REPORT, current_fields
from fss.errors import RunError
from fss.report import class_charts as charts
from fss.report.compute_hours import evaluation_hours, training_hours
from fss.report.page import Page, Picture, Table, write_page
from fss.report.published import Cell, published
from shards.format import write_whole

SCORED_ALIKE = ("resolution", "labels", "ignore_255")  # of a scoring: what two scores must share to be compared
PLACES = ("name", "size", "backbone")  # method options that have a column of their own, or the name of the row
NOTHING = "\N{EM DASH}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished evaluation."""

    folder: Path
    cell: Cell
    options: dict[str, Any]
    """Its method's; of a file of weights, whether one was given."""
    found: dict[str, Any]
    """results.json."""
    drawn: str
    """Digest of its episodes."""
    caveats: tuple[str, ...]

    @property
    def backbone(self) -> str:
        return self.cell.backbone or NOTHING


@dataclass(frozen=True, kw_only=True)
class Row:
    """The runs of one method and one set of its options, fold by fold; several in a fold differ in their training."""

    label: str
    backbone: str
    folds: dict[int, list[Entry]]

    def fold(self, fold: int, metric: str) -> list[float]:
        """Per cent, one a run."""
        return [100 * entry.found[metric]["mean"] for entry in self.folds.get(fold, [])]

    def mean(self, metric: str) -> float:
        """Over the folds that there are, of the means over runs."""
        return statistics.fmean(statistics.fmean(self.fold(fold, metric)) for fold in self.folds)

    @property
    def entries(self) -> list[Entry]:
        return [entry for fold in sorted(self.folds) for entry in self.folds[fold]]


def compare(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of the evaluations in `folders` into `out`, with its tables as Markdown, CSV and LaTeX.

    Returns the path of the HTML. Raises RunError where a folder holds no finished evaluation.
    """
    entries = [read(Path(folder)) for folder in folders]
    out.mkdir(parents=True, exist_ok=True)
    ran = {"evaluations": len(entries), "in": ", ".join(str(entry.folder) for entry in entries)}
    page = Page(title="Few-shot segmentation: methods compared", ran=ran)
    for number, (title, sheet) in enumerate(_sheets(entries)):
        rows = _rows(sheet)
        page.tables.append(_scores(title, rows))
        page.caveats += _unlike(title, sheet)
        page.pictures.append(_dots(out, number, title, rows))
        page.pictures += _worst(out, number, rows)
        page.appendix += [_costs(title, rows), _how(title, rows)]
    page.caveats += _cautions(entries)
    for suffix, written in (("csv", _csv), ("tex", _latex)):
        write_whole(out / f"tables.{suffix}", "\n".join(map(written, page.tables)).encode())
    return write_page(out, page)


def read(folder: Path) -> Entry:
    """The evaluation in `folder`; raises RunError where there is none, or one that did not finish."""
    try:
        found = json.loads((folder / "results.json").read_text())
        report = current_fields(json.loads((folder / "report" / "report.json").read_text()), REPORT)
        run = json.loads((folder / "run.json").read_text())
        cell, drawn = Cell(**current_fields(report["figures"]["cell"], CELL)), run["episodes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder} holds no finished evaluation ({error}): give run directories of launch/evaluate.py"
        ) from None
    options = {key.removeprefix("method."): value for key, value in run.items() if key.startswith("method.")}
    return Entry(
        folder=folder,
        cell=cell,
        found=found,
        drawn=drawn,
        options={key: bool(value) if key.endswith("_weights") else value for key, value in options.items()},
        caveats=tuple(report["caveats"]),
    )


def _sheets(entries: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Groups of evaluations whose scores may stand in one table, with what they share."""
    groups = defaultdict(list)
    for entry in entries:
        scoring = tuple(entry.found["scoring"][name] for name in SCORED_ALIKE)
        groups[entry.found["protocol"]["data"], entry.cell.scheme, entry.cell.shots, scoring].append(entry)
    for (data, scheme, shots, (resolution, labels, ignored)), group in groups.items():
        kind = f"{data}, scheme {scheme}, {shots}-shot"
        yield f"{kind}; scored at {resolution}, masks {labels}, 255 {'not ' if ignored else ''}counted", group


def _rows(entries: Sequence[Entry]) -> list[Row]:
    """One row for every method, backbone, size and set of options, the worst first."""
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
    """The method, and the options in which runs of it differ; not those of weights that follow from the others."""
    same = [e.options for e in entries if e.cell.method == entry.cell.method]
    differing = [
        key
        for key, value in entry.options.items()
        if key not in PLACES and any(other.get(key) != value for other in same)
    ]

    def kinds(keys: Sequence[str]) -> int:
        return len({tuple(str(options.get(key)) for key in keys) for options in same})

    for key in [key for key in differing if key.endswith("_weights")]:
        others = [other for other in differing if other != key]
        if kinds(others) == kinds(differing):
            differing = others
    shown = ", ".join(f"{key} {entry.options[key]}" for key in differing)
    return entry.cell.method + (f" ({shown})" if shown else "")


def _scores(title: str, rows: Sequence[Row]) -> Table:
    """Laid out as in the papers: folds, their mean, FB-IoU, and what the paper prints for the method."""
    folds = sorted({fold for row in rows for fold in row.folds})
    several = len(folds) > 1
    lines = []
    for row in rows:
        cells = [_over_runs(row.fold(fold, "miou")) for fold in folds]
        cells += [f"{row.mean('miou'):.2f}"] if several else []
        lines.append((row.label, row.backbone, *cells, f"{row.mean('fb_iou'):.2f}", _in_print(row)))
    columns = [f"fold {fold}" for fold in folds] + (["mean"] if several else [])
    header = ("", "backbone", *columns, "FB-IoU", "published")
    note = (
        "mIoU on novel classes, per cent; ± is the standard deviation over runs, their number behind it. Published is "
        "the mean over the folds of the row, or over all where the paper prints no other."
    )
    return Table(title=title, header=header, rows=lines, note=note)


def _over_runs(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f} ({len(values)})"


def _in_print(row: Row) -> str:
    """The paper's mIoU over the folds of the row; over all where it prints no single ones."""
    paper = published(row.entries[0].cell, "miou")
    if paper is None:
        return NOTHING
    if len(row.folds) < len(paper.folds):
        return f"{statistics.fmean(paper.folds[fold] for fold in row.folds):.1f}"
    return f"{paper.mean:.1f}"


def _unlike(title: str, entries: Sequence[Entry]) -> list[str]:
    """What keeps evaluations in one table from being compared."""
    said = []
    for fold in sorted({entry.cell.fold for entry in entries}):
        if len({entry.drawn for entry in entries if entry.cell.fold == fold}) > 1:
            said.append(f"{title}: the runs of fold {fold} were not evaluated on the same episodes.")
    folds = {tuple(sorted(row.folds)) for row in _rows(entries)}
    if len(folds) > 1:
        said.append(f"{title}: not every method has every fold, so their means are not of the same classes.")
    return said


def _cautions(entries: Sequence[Entry]) -> list[str]:
    """Those of all runs, each once, with the methods that it is of."""
    methods: dict[str, dict[str, None]] = defaultdict(dict)
    for entry in entries:
        for text in entry.caveats:
            methods[text][entry.cell.method] = None
    return [f"{', '.join(names)}: {text}" for text, names in methods.items()]


def _dots(out: Path, number: int, title: str, rows: Sequence[Row]) -> Picture:
    """The classes of all folds, a dot for every row of the table."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        values = defaultdict(list)
        for entry in row.entries:
            for name, about in entry.found["classes"].items():
                values[name].append(100 * about["iou"]["mean"])
        for name, ious in values.items():
            found[name][row.label] = statistics.fmean(ious)
    file = f"classes_{number}.png"
    charts.class_dots(found, [row.label for row in rows], out / file)
    caption = f"Intersection over union by class, per cent. {title}."
    return Picture(title="Classes", file=file, caption=caption, wide=True)


def _worst(out: Path, number: int, rows: Sequence[Row]) -> Iterator[Picture]:
    """Where each method fails: the worst episodes of its first run."""
    for place, row in enumerate(rows):
        entry = row.entries[0]
        picture = entry.folder / "report" / "worst.png"
        if picture.exists():
            file = f"worst_{number}_{place}.png"
            shutil.copyfile(picture, out / file)
            yield Picture(
                title=f"{row.label}: worst episodes",
                file=file,
                wide=True,
                caption=f"Of {entry.folder.name}, fold {entry.cell.fold}: different classes, not chosen by hand.",
            )


def _costs(title: str, rows: Sequence[Row]) -> Table:
    lines = []
    for row in rows:
        first = row.entries[0].found
        sizes = {**first.get("parameters", {}), "flops": first.get("flops")}  # old results have neither
        seconds = statistics.median(entry.found["seconds_per_episode"] for entry in row.entries)
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
        "Parameters in millions; GFLOP of an episode of one shot, both images encoded, a product and a sum "
        "being two. Hours are the mean over the runs of the row: of all optimizer steps behind the weights, prior "
        "extractor and base learner included, and of all episodes; on CPUs of every thread of every rank."
    )
    return Table(title=f"Cost: {title}", header=header, rows=lines, note=note)


def _scaled(count: float | None, unit: float) -> str:
    return NOTHING if count is None else f"{count / unit:.2f}"


def _hours(row: Row, hours_of: Callable[[Path], Counter[str] | None]) -> str:
    """The mean over the runs of the row, where all of them have their records."""
    each = [hours_of(entry.folder) for entry in row.entries]
    if None in each:
        return NOTHING
    mean = {device: sum(hours[device] for hours in each) / len(each) for device in dict.fromkeys(chain(*each))}
    return " + ".join(f"{value:.{0 if value >= 10 else 2}f} {device}" for device, value in mean.items())


def _how(title: str, rows: Sequence[Row]) -> Table:
    """What every row says of how it was made, where they differ."""
    stated = [(row.label, {"size": row.entries[0].cell.size, **row.entries[0].found["protocol"]}) for row in rows]
    keys = list(dict.fromkeys(key for _, statement in stated for key in statement))
    return Table(
        title=f"How it was made: {title}",
        folded=True,
        header=("", *(label for label, _ in stated)),
        rows=[(key, *(str(statement.get(key, NOTHING)) for _, statement in stated)) for key in keys],
    )


def _csv(table: Table) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([(table.title,), table.header, *table.rows])
    return file.getvalue()


def _latex(table: Table) -> str:
    """A tabular in the manner of booktabs."""

    def line(cells: Sequence[str]) -> str:
        written = (cell.replace("±", r"$\pm$").replace(NOTHING, "---").replace("_", r"\_") for cell in cells)
        return " & ".join(written) + r" \\"

    body = [line(table.header), r"\midrule", *(line(row) for row in table.rows)]
    columns = "ll" + "r" * (len(table.header) - 2)
    return "\n".join(
        [
            f"% {table.title}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
