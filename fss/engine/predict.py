"""A method on a user's own pictures: supports with masks go in, label maps of queries come out."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from fss.data.transforms import Frame, Resize, fit_image
from fss.engine.evaluate import method_of
from fss.engine.evaluation.measure import evaluating
from fss.engine.reports import label_maps
from fss.errors import UserError
from fss.methods import METHODS, load_method
from fss.methods.base import Features, Method
from shards.format import IGNORE_LABEL, ShardError, write_whole

Picture = str | Path | np.ndarray
"""A file, or what is in it: a photograph uint8 RGB [H, W, 3], or a mask of integers or truth values [H, W]."""
Supports = Sequence[tuple[Picture, Picture]]
"""Photograph and mask of each shot."""
OBJECT = "object"    # the class of supports without a name
SUFFIXES = (".jpg", ".jpeg", ".png")
SHEET = 40    # queries on the contact sheet


@dataclass(frozen=True)
class Prediction:
    """What was found in a query."""

    image: np.ndarray
    """The query, uint8 RGB [H, W, 3]."""
    labels: np.ndarray
    """uint8 [H, W]: 0 background, i the i-th of `classes`."""
    classes: tuple[str, ...]

    def mask(self, name: str = OBJECT) -> np.ndarray:
        """Where the class is, bool [H, W]."""
        return self.labels == self.classes.index(name) + 1


class Segmenter:
    """Segments queries by what supports show.

    size: side of the square that the method sees, pixels; None: its own. resize: how a picture is put into it.
    """

    def __init__(
        self, method: Method, *, device: torch.device | str = "cpu", size: int | None = None, resize: Resize = "exact"
    ) -> None:
        self.method = method
        self.device = torch.device(device)
        self.size = size or method.config.size
        self.resize = resize
        for part in (method.trained, method.replica):
            part.to(self.device)

    def learn(self, supports: Supports | Mapping[str, Supports]) -> dict[str, list[Features]]:
        """What K >= 1 supports say of a class, or of each of several by name, for `find`.

        Raises UserError where a file cannot be read, or a mask is empty or not of its photograph's size.
        """
        named = supports if isinstance(supports, Mapping) else {OBJECT: supports}
        if not named or not all(named.values()):
            raise UserError("supports are empty: give at least one photograph with its mask for every class")
        return {name: [self._describe(*shot) for shot in shots] for name, shots in named.items()}

    def find(self, query: Picture, known: Mapping[str, Sequence[Features]]) -> Prediction:
        """Where what `learn` knows is in the query; a pixel belongs to the class that it fits best, if to any."""
        image = read_photograph(query)
        square, frame = self._fitted(image)
        with evaluating(self.method), torch.inference_mode():
            features = self.method.encode(square)
            if self.method.encodes_queries:
                features = features | self.method.encode_query(square)
            margins = [frame.margin(self.method.predict(features, shots), "original") for shots in known.values()]
        best, place = torch.stack(margins).max(0)    # [H, W] each
        labels = torch.where(best > 0, place + 1, 0).to(torch.uint8).cpu().numpy()
        return Prediction(image, labels, tuple(known))

    def predict(self, query: Picture, supports: Supports | Mapping[str, Supports]) -> Prediction:
        """`learn` and `find` in one, for a single query."""
        return self.find(query, self.learn(supports))

    def _describe(self, photograph: Picture, mask: Picture) -> Features:
        square, frame = self._fitted(read_photograph(photograph))
        marked = read_mask(mask)
        try:
            fitted = frame.mask(marked)
        except ShardError:
            raise UserError(
                f"mask {_name(mask)} has {marked.shape[1]} x {marked.shape[0]} pixels but {_name(photograph)} has "
                f"{frame.width} x {frame.height}: give a mask of the photograph's own size"
            ) from None
        if not (marked == 1).any():
            raise UserError(f"mask {_name(mask)} marks no pixel: paint the object in any colour on black")
        with evaluating(self.method), torch.inference_mode():
            return self.method.describe(self.method.encode(square), torch.from_numpy(fitted)[None].to(self.device))

    def _fitted(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        square, frame = fit_image(image, self.size, self.resize)
        return square[None].to(self.device), frame


def load(
    weights: str | Path | None = None, *, method: str = "gfsam", device: str = "cpu", size: int | None = None,
    resize: Resize = "exact", **options: Any,
) -> Segmenter:    # fmt: skip
    """A `Segmenter` of the method that a training exported to `weights`; without, of one that needs no training.

    method, options: which one that is, and its options as on the command line (`--method.dino_weights` and so on).
    Raises WeightsError or ConfigError where a file or an option does not fit.
    """
    if weights is not None:
        return Segmenter(load_method(Path(weights))[0], device=device, size=size, resize=resize)
    if METHODS[method].learns:
        raise UserError(f"{method} learns but no weights are given: fss.load(FILE), of a run of launch/meta_train.py")
    return Segmenter(METHODS[method](METHODS[method].Config(**options)), device=device, size=size, resize=resize)


class PredictJob(Protocol):
    """What `segment_files` needs of a job; its fields are described in launch/predict.py."""

    support: list[str]
    mask: list[str]
    name: list[str]
    query: list[str]
    size: int | None
    device: str
    method: Any
    weights: str | None


def segment_files(job: PredictJob, out: Path) -> Path:
    """Segment the queries of `job` and write label maps, overlays and a contact sheet into `out`, which is returned.

    A label map is an 8-bit index PNG of the query's size with a palette; labels.txt says which class an index is.
    Raises UserError for what a user can mend; nothing is written before all supports are read.
    """
    shots = _shots(job)
    queries = _pictures(job.query)
    method, header, notes = method_of(job)
    device = "cuda" if job.device == "auto" and torch.cuda.is_available() else job.device.replace("auto", "cpu")
    segmenter = Segmenter(method, device=device, size=job.size)
    known = segmenter.learn(shots)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "labels.txt", "".join(f"{label} {name}\n" for label, name in enumerate(known, 1)).encode())
    found = []
    for path in track(queries, "segmenting", disable=not sys.stdout.isatty()):
        prediction = segmenter.find(path, known)
        _write(prediction, out, path.stem)
        found.append((path.name, prediction.image, prediction.labels))
        notes += [f"{path.name}: {remark}" for remark in method.remarks()]
    for text in (*notes, *method.cautions(int(header.get("episodes_seen", 0)))):
        print(f"note: {text}")
    read = {name: [(read_photograph(p), read_mask(m)) for p, m in pairs] for name, pairs in shots.items()}
    label_maps.contact_sheet(read, found[:SHEET], out / "sheet.png")
    return out


def _shots(job: PredictJob) -> dict[str, list[tuple[str, str]]]:
    """Class -> photograph and mask of each support, in the order of the command line."""
    if not job.support:
        raise UserError("no --support is given: show at least one photograph of the class, with its --mask")
    names = job.name or [OBJECT] * len(job.support)
    for option, values in (("--mask", job.mask), ("--name", names)):
        if len(values) != len(job.support):
            raise UserError(
                f"{len(job.support)} --support but {len(values)} {option} are given: give one {option} for every "
                "support, in the same order"
            )
    shots: dict[str, list[tuple[str, str]]] = {}
    for name, *pair in zip(names, job.support, job.mask, strict=True):
        shots.setdefault(name, []).append(tuple(pair))
    return shots


def _pictures(named: Sequence[str]) -> list[Path]:
    """The pictures that were named, and those in folders that were, by name."""
    found = []
    for path in map(Path, named):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path} holds no picture ({', '.join(SUFFIXES)}): give a folder that does")
        found += inside
    if not found:
        raise UserError("no --query is given: name pictures to segment, or folders of them")
    stems = [path.stem for path in found]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise UserError(f"two queries are called {twice}: rename one, or segment them into another --out")
    return found


def _write(prediction: Prediction, out: Path, stem: str) -> None:
    """The label map as STEM.png, and the photograph with it in colour as STEM_overlay.jpg."""
    classes = len(prediction.classes)
    palette = label_maps.label_colours(classes).round().astype(np.uint8)
    labels = Image.fromarray(prediction.labels, "P")
    labels.putpalette(palette.tobytes())
    labels.save(out / f"{stem}.png")
    Image.fromarray(label_maps.tinted(prediction.image, prediction.labels, classes)).save(out / f"{stem}_overlay.jpg")


def read_photograph(picture: Picture) -> np.ndarray:
    """uint8 RGB [H, W, 3], turned as its camera says; grey, palette and transparent files too.

    Raises UserError where the file is missing or no picture.
    """
    return picture if isinstance(picture, np.ndarray) else np.array(_open(picture).convert("RGB"))


def read_mask(picture: Picture) -> np.ndarray:
    """uint8 [H, W]: 1 the class, 0 not, 255 unknown.

    In an index or grey PNG every value but 0 is the class, and 255 is unknown where there are others, as in PASCAL VOC;
    in colour every pixel that is neither black nor transparent is the class.
    """
    if isinstance(picture, np.ndarray):
        values = picture.astype(np.int64)
    else:
        opened = _open(picture)
        if opened.mode not in ("1", "L", "P", "I", "I;16"):
            *colours, alpha = np.moveaxis(np.asarray(opened.convert("RGBA")), 2, 0)
            return ((np.maximum.reduce(colours) > 0) & (alpha > 0)).astype(np.uint8)
        values = np.asarray(opened).astype(np.int64)
    mask = (values > 0).astype(np.uint8)
    others = mask.astype(bool) & (values != IGNORE_LABEL)
    if others.any():
        mask[values == IGNORE_LABEL] = IGNORE_LABEL
    return mask


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): give a JPEG or PNG") from None


def _name(picture: Picture) -> str:
    return "of the array" if isinstance(picture, np.ndarray) else str(picture)
