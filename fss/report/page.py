"""The page of a run in three forms: report.json for programs, report.md for a terminal, index.html for a browser."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fss.report.curves import series
from fss.report.tables import NO_VALUE, Table, markdown_table
from fss.tracking.catalogue import METRICS
from shards.format import write_whole


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A criterion of success, and whether the run meets it."""

    good: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG in the folder of the page."""

    title: str
    file: str
    """Its name in the report folder."""
    caption: str
    wide: bool = False
    """True if it scrolls on a narrow screen instead of shrinking until it cannot be read."""


@dataclass(kw_only=True)
class Page:
    """The content of a page."""

    title: str
    tables: list[Table] = field(default_factory=list)
    """The results, at the top."""
    summary: Mapping[str, object]
    """The section 'What ran': label -> value."""
    verdicts: list[Verdict] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    """Sentences on the limits of the results."""
    pictures: list[Picture] = field(default_factory=list)
    appendix: list[Table] = field(default_factory=list)
    """Further tables, below the pictures."""
    environment: Mapping[str, object] = field(default_factory=dict)
    resume: str = ""
    """The command that resumes the run."""
    figures: Mapping[str, object] = field(default_factory=dict)
    """Values for programs, in report.json alone."""
    unit: str = "images"
    """The plural noun for the samples of a batch."""


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """The part of the page of a training that depends on its kind of data."""

    verdicts: list[Verdict]
    baselines: Mapping[str, float]
    """Key of a logged value -> the value of a baseline that does not look at the image."""
    baseline_name: str
    """Name of the baseline in the legend of the curves."""
    baseline_description: str
    """A noun phrase on how the baseline is computed, for the caption."""
    pictures: list[Picture]
    summary: Mapping[str, object] = field(default_factory=dict)
    """More entries of `Page.summary`."""


NUMBER = re.compile(rf"[-+]?\d|{NO_VALUE}?$")  # matches a cell with a number or without a value


def environment_summary(environment: Mapping[str, Any]) -> dict[str, object]:
    """The section 'Environment' of a page, from a line of environment.jsonl; packages come last."""
    elsewhere = ("packages", "command", "world_size")
    known = {name: value for name, value in environment.items() if value is not None and name not in elsewhere}
    return known | environment["packages"]


def write_page(folder: Path, page: Page, rows: Sequence[dict] = ()) -> Path:
    """Write report.json, report.md and index.html into `folder`; returns the path of the last.

    rows: the lines of metrics.jsonl, of a training. The HTML contains its style and refers to the pictures of its
    folder alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last: dict = {}
    for row in rows:
        last |= row
    speed = speed_table(rows, page.unit)
    facts = {**asdict(page), "speed": speed, "last": last}
    appendix = list(page.appendix)
    if speed:
        lines = [(row["what"], row["median"], row["range"]) for row in speed]
        appendix.append(Table(title="Speed", header=("", "median", "10 % to 90 %"), rows=lines))
    write_whole(folder / "report.json", json.dumps(facts, indent=1, default=str).encode())
    write_whole(folder / "report.md", _markdown(page, appendix).encode())
    write_whole(folder / "index.html", _html(page, appendix).encode())
    return folder / "index.html"


def speed_table(rows: Sequence[dict], unit: str = "images") -> list[dict[str, str]]:
    """Median and 10th to 90th percentile of every speed metric, without the first row, which is a warm-up.

    rows: the lines of metrics.jsonl. unit: the plural noun for the samples of a batch.
    """
    table = []
    for metric in METRICS:
        if metric.summary is None:
            continue
        values = series(rows, metric.key)[1] * metric.factor
        values = values[1:] if len(values) > 1 else values
        if len(values):
            low, median, high = (f"{value:.{metric.decimals}f}" for value in np.percentile(values, (10, 50, 90)))
            table.append({"what": metric.summary.format(unit=unit), "median": median, "range": f"{low} to {high}"})
    return table


def _markdown(page: Page, appendix: list[Table]) -> str:
    lines = [f"# {page.title}", ""]
    lines += [f"- {'PASS' if verdict.good else 'NOT YET'}: {verdict.text}" for verdict in page.verdicts]
    lines += ["", *(f"> {text}\n" for text in page.caveats)]
    lines += [markdown_table(table) for table in page.tables]
    lines += ["## What ran", "", *(f"- {label}: {value}" for label, value in page.summary.items()), ""]
    for picture in page.pictures:
        lines += [f"## {picture.title}", "", f"![{picture.title}]({picture.file})", "", picture.caption, ""]
    lines += [markdown_table(table) for table in appendix]
    lines += ["## Environment", "", *(f"- {label}: {value}" for label, value in page.environment.items())]
    lines += ["", "## Resume", "", "```", page.resume, "```", ""] if page.resume else [""]
    return "\n".join(lines)


def _html(page: Page, appendix: list[Table]) -> str:
    verdicts = "".join(
        f'<li class="{"good" if verdict.good else "bad"}">{_text(verdict.text)}</li>' for verdict in page.verdicts
    )
    caveats = "".join(f"<p>{_text(text)}</p>" for text in page.caveats)
    pictures = "".join(
        f"<figure{' class=wide' if p.wide else ''}><h2>{_text(p.title)}</h2>"
        f'<a href="{_text(p.file)}"><img {_source(p)} alt="{_text(p.title)}"></a>'
        f"<figcaption>{_text(p.caption)}</figcaption></figure>"
        for p in page.pictures
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{_text(page.title)}</h1>
{f'<ul class="verdicts">{verdicts}</ul>' if verdicts else ""}
{f"<aside>{caveats}</aside>" if caveats else ""}
{"".join(map(_table, page.tables))}
<section><h2>What ran</h2>{_definitions(page.summary)}</section>
{pictures}
{"".join(map(_table, appendix))}
<section><h2>Environment</h2>{_definitions(page.environment)}</section>
{f"<section><h2>Resume</h2><pre>{_text(page.resume)}</pre></section>" if page.resume else ""}
</main>
</body>
</html>
"""


def _source(picture: Picture) -> str:
    """The source of an image: a wide picture has two pixels for each one of the page, and no src, which has one."""
    return f'srcset="{_text(picture.file)} 2x"' if picture.wide else f'src="{_text(picture.file)}"'


def _table(table: Table) -> str:
    if not table.header:
        facts = {row[0]: row[1] for row in table.rows}
        return f"<section><h2>{_text(table.title)}</h2>{_definitions(facts)}</section>"
    columns = list(zip(*table.rows, strict=True))
    kinds = ["" if all(NUMBER.match(str(cell)) for cell in column) else " class=words" for column in columns]
    head = "".join(f"<th{kind}>{_text(word)}</th>" for kind, word in zip(kinds, table.header, strict=True))
    rows = ""
    for first, *others in table.rows:
        cells = (f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        rows += f"<tr><th>{_text(first)}</th>{''.join(cells)}</tr>"
    whole = f'<div class="table"><table><thead><tr>{head}</tr></thead>{rows}</table></div>'
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    if table.folded:
        return f"<details><summary>{_text(table.title)}</summary>{whole}{note}</details>"
    return f"<section><h2>{_text(table.title)}</h2>{whole}{note}</section>"


def _definitions(facts: Mapping[str, object]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _text(value: object) -> str:
    return html.escape(str(value))


STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --dim: #5b6470; --paper: #fff; --soft: #f3f5f7; --rule: #dfe3e8;
  --good: #00734f; --bad: #b34700; --warn: #fff4dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --dim: #9aa4b0; --paper: #15181c; --soft: #1e2329;
  --rule: #333a43; --good: #3cc79a; --bad: #ff9a52; --warn: #3a2f16; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2, summary { font-size: 1.1rem; font-weight: 700; margin: 2.2rem 0 .6rem; }
summary { cursor: pointer; }
.verdicts { list-style: none; margin: 0; padding: 0; }
.verdicts li { padding: .35rem 0 .35rem 1.9rem; position: relative; }
.verdicts li::before { position: absolute; left: 0; font-weight: 700; }
.good::before { content: "\\2713"; color: var(--good); }
.bad::before { content: "\\2717"; color: var(--bad); }
aside { background: var(--warn); border-left: 4px solid var(--bad); padding: .2rem 1rem; margin: 1rem 0; }
aside p { margin: .6rem 0; }
dl { display: grid; grid-template-columns: minmax(7rem, 14rem) 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0; }
img { width: auto; max-width: 100%; height: auto; display: block; margin: 0 auto; background: #fff;
  border: 1px solid var(--rule); border-radius: 6px; }
.wide a { display: block; overflow-x: auto; }
.wide img { min-width: 100%; max-width: none; }
@media (max-width: 760px) { dl { grid-template-columns: minmax(5rem, 30%) 1fr; } }
figcaption, .note { color: var(--dim); font-size: .92rem; margin: .5rem 0 0; max-width: 48rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-feature-settings: "tnum"; }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: right; font-weight: 400; }
thead th { color: var(--dim); }
th:first-child, .words { text-align: left; }
td:not(.words) { white-space: nowrap; }
pre { background: var(--soft); padding: .8rem 1rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
"""
