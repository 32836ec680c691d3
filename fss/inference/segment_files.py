"""The command that segments a user's picture files: label maps, overlays and a contact sheet."""

import sys
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from rich.progress import track

from fss.errors import UserError
from fss.inference.segmenter import OBJECT, MethodJob, load_segmenter
from fss.inference.user_images import read_mask, read_photograph
from fss.report import label_map_figures as label_maps
from shards.format import write_whole

SUFFIXES = (".jpg", ".jpeg", ".png")
SHEET = "sheet"  # stem of the contact sheet
SHEET_QUERIES = 40  # queries on the contact sheet
NAMED = 5  # queries that an error names


class PredictJob(MethodJob, Protocol):
    """The options of a job that `segment_files` reads; its fields are described in launch/predict.py."""

    @property
    def support(self) -> list[str]: ...
    @property
    def mask(self) -> list[str]: ...
    @property
    def name(self) -> list[str]: ...
    @property
    def query(self) -> list[str]: ...


def segment_files(job: PredictJob, out: Path) -> Path:
    """Segment the queries of `job` and write label maps, overlays and a contact sheet into `out`, which is returned.

    A label map is an 8-bit index PNG of the query's size with a palette; labels.txt has the class of every index.
    Nothing is written before all supports are read.
    Raises UserError if an option or a support does not fit, and at the end, after all other queries are segmented, if
    a query cannot be read or its logits are not finite.
    """
    shots = _shots(job)
    queries = _pictures(job, out)
    segmenter, messages = load_segmenter(job)
    supports = segmenter.encode_supports(shots)
    support_overlays = {
        name: [label_maps.overlaid(read_photograph(p), label * (read_mask(m) == 1), len(supports)) for p, m in pairs]
        for label, (name, pairs) in zip(np.arange(1, len(shots) + 1, dtype=np.uint8), shots.items(), strict=True)
    }
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "labels.txt", "".join(f"{label} {name}\n" for label, name in enumerate(supports, 1)).encode())
    query_overlays: list[tuple[str, np.ndarray]] = []
    errors: list[str] = []
    for path in track(queries, "segmenting", disable=not sys.stdout.isatty()):
        try:
            prediction = segmenter.segment(path, supports)
        except UserError as error:
            errors.append(str(error))
            continue
        prediction.save_labels(out / f"{path.stem}.png")
        Image.fromarray(prediction.overlay()).save(out / f"{path.stem}_overlay.jpg")
        messages += [f"{path.name}: {flag}" for flag in prediction.flags]
        if len(query_overlays) < SHEET_QUERIES:
            overlay = label_maps.overlaid(prediction.image, prediction.labels, len(supports))
            query_overlays.append((path.name, overlay))
    for message in messages:
        print(f"note: {message}")
    label_maps.contact_sheet(support_overlays, query_overlays, out / f"{SHEET}.png")
    if errors:
        raise UserError(f"{len(errors)} of {len(queries)} queries were left out: {'; '.join(errors[:NAMED])}")
    return out


def _shots(job: PredictJob) -> dict[str, list[tuple[str, str]]]:
    """Class -> photograph and mask of each support, in the order of the command line."""
    if not job.support:
        raise UserError("no --support is given: give at least one photograph of the class, with its --mask")
    names = job.name or [OBJECT] * len(job.support)
    for option, values in (("--mask", job.mask), ("--name", names)):
        if len(values) != len(job.support):
            raise UserError(
                f"{len(job.support)} --support but {len(values)} {option} are given: give one {option} for every "
                "support, in the same order"
            )
    shots: dict[str, list[tuple[str, str]]] = {}
    for name, photograph, mask in zip(names, job.support, job.mask, strict=True):
        shots.setdefault(name, []).append((photograph, mask))
    return shots


def _pictures(job: PredictJob, out: Path) -> list[Path]:
    """The queries that are named, and those in folders that are named, by name; none of them lies in `out`."""
    queries: list[Path] = []
    for path in map(Path, job.query):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path} holds no picture ({', '.join(SUFFIXES)}): give a folder that does")
        queries += inside
    if not queries:
        raise UserError("no --query is given: name pictures to segment, or folders of them")
    stems = [path.stem for path in queries]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise UserError(f"two queries are called {twice}: rename one, or segment them into another --out")
    if SHEET in stems:
        raise UserError(f"a query is called {SHEET}, as the contact sheet will be: rename it")
    given = [*queries, *map(Path, job.support), *map(Path, job.mask)]
    if inside_out := next((path for path in given if path.parent.resolve() == out.resolve()), None):
        raise UserError(f"{inside_out} lies in --out {out}, where label maps are written: give another folder")
    return queries
