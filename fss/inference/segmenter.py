"""A method on a user's own pictures: supports with masks go in, label maps of queries come out."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from fss.data.transforms import Resize
from fss.errors import ConfigError, RunError, UserError
from fss.evaluate.loading import load_for_evaluation
from fss.evaluate.plan import require_valid_size
from fss.evaluate.predictor import EpisodePredictor
from fss.inference.user_images import Picture, read_mask, read_photograph
from fss.methods import METHODS, load_method
from fss.methods.base import EpisodeMethod, Features
from fss.report import label_map_figures as label_maps
from shards.format import IGNORE_LABEL, write_whole

Supports = Sequence[tuple[Picture, Picture]]
"""Photograph and mask of each shot."""
OBJECT = "object"  # the class of supports without a name
SUFFIXES = (".jpg", ".jpeg", ".png")
SHEET = "sheet"  # stem of the contact sheet
SHOWN = 40  # queries on it
MOST = IGNORE_LABEL - 1  # classes that a label map of 8 bits has room for


@dataclass(frozen=True)
class SegmentedImage:
    """What was found in a query."""

    image: np.ndarray
    """The query, uint8 RGB [H, W, 3]."""
    labels: np.ndarray
    """uint8 [H, W]: 0 background, i the i-th of `classes`."""
    classes: tuple[str, ...]
    sure: float | None
    """Mean, over the pixels found, of the probability that the method's logits give to their class against the
    background, above 0.5; None where nothing was found, or where the method gives no probabilities."""
    flags: tuple[str, ...] = ()
    """What was unusual about the prediction, a few words each."""

    def mask(self, name: str = OBJECT) -> np.ndarray:
        """Where the class is, bool [H, W]."""
        return self.labels == self.classes.index(name) + 1

    def save_labels(self, path: Path) -> None:
        """Write the labels as a PNG of 8-bit indices whose palette has a colour for every class."""
        labels = Image.fromarray(self.labels, "P")
        labels.putpalette(label_maps.label_colours(len(self.classes)).round().astype(np.uint8).tobytes())
        labels.save(path)

    def overlay(self) -> np.ndarray:
        """The query in grey, what was found in colour over it, uint8 RGB [H, W, 3]."""
        return label_maps.tinted(self.image, self.labels, len(self.classes))


class Segmenter:
    """Segments queries by what supports show.

    device: as torch names them; 'auto' is CUDA where there is a device. size: side of the square that the method sees,
    pixels; None: its own. resize: how a picture is put into it.
    Raises UserError where there is no CUDA, ConfigError where the method does not take the size.
    """

    def __init__(
        self,
        method: EpisodeMethod,
        *,
        device: torch.device | str = "auto",
        size: int | None = None,
        resize: Resize = "exact",
    ) -> None:
        require_valid_size(method.config, size, "size")
        there = torch.cuda.is_available()
        self.device = torch.device(("cuda" if there else "cpu") if device == "auto" else device)
        if self.device.type == "cuda" and not there:
            raise UserError(f"device is {device} but torch sees no CUDA device: use auto or cpu")
        self.method = method
        self.size = size or method.config.size
        self.resize = resize
        for part in (method.trainable, method.non_trainable):
            part.to(self.device)
        self._predictor = EpisodePredictor(method, device=self.device, size=self.size, resize=resize)

    def learn(self, supports: Supports | Mapping[str, Supports]) -> dict[str, list[Features]]:
        """What K >= 1 supports say of a class, or of each of several by name, for `find`.

        Raises UserError where a file cannot be read, or a mask is empty or not of its photograph's size.
        """
        named = supports if isinstance(supports, Mapping) else {OBJECT: supports}
        if not named or not all(named.values()):
            raise UserError("supports are empty: give at least one photograph with its mask for every class")
        if len(named) > MOST:
            raise UserError(f"supports are of {len(named)} classes: give at most {MOST}, others to another run")
        return {name: [self._describe(*shot) for shot in shots] for name, shots in named.items()}

    def find(self, query: Picture, known: Mapping[str, Sequence[Features]]) -> SegmentedImage:
        """Where what `learn` knows is in the query; a pixel belongs to the class that it fits best, if to any."""
        image = read_photograph(query)
        square, frame = self._predictor.fit(image)
        with self._predictor as predictor:
            features = predictor.encode_query(square, predictor.encode(square))
            try:
                predictions = [predictor.predict(features, shots, _name(query)) for shots in known.values()]
            except RunError as error:
                raise UserError(str(error)) from None
            margins = [frame.resize_margin(prediction.margin, "original") for prediction in predictions]
        best, place = torch.stack(margins).max(0)  # [H, W] each
        foreground = best > 0
        labels = torch.where(foreground, place + 1, 0).to(torch.uint8).cpu().numpy()
        sure = None
        if self.method.has_probabilities and foreground.any():
            sure = float(best[foreground].sigmoid().mean())
        flags = tuple(dict.fromkeys(flag for prediction in predictions for flag in prediction.flags))
        return SegmentedImage(image, labels, tuple(known), sure, flags)

    def predict(self, query: Picture, supports: Supports | Mapping[str, Supports]) -> SegmentedImage:
        """`learn` and `find` in one, for a single query."""
        return self.find(query, self.learn(supports))

    def _describe(self, photograph: Picture, mask: Picture) -> Features:
        square, frame = self._predictor.fit(read_photograph(photograph))
        marked = read_mask(mask)
        if marked.shape != (frame.height, frame.width):
            raise UserError(
                f"mask {_name(mask)} has {marked.shape[1]} x {marked.shape[0]} pixels but {_name(photograph)} has "
                f"{frame.width} x {frame.height}: give a mask of the photograph's own size"
            )
        if not (marked == 1).any():
            raise UserError(f"mask {_name(mask)} marks no pixel: paint the object in any colour on black")
        with self._predictor as predictor:
            return predictor.encode_support(predictor.encode(square), marked, frame)


def load(
    weights: str | Path | None = None,
    *,
    method: str = "gfsam",
    device: str = "auto",
    size: int | None = None,
    resize: Resize = "exact",
    **options: Any,
) -> Segmenter:
    """A `Segmenter` of the method that a training exported to `weights`; without, of one that needs no training.

    method, options: which one that is, and its options as on the command line (`--method.dino_weights` and so on);
    with weights, these say.
    Raises WeightsError or ConfigError where a file or an option does not fit.
    """
    if weights is not None:
        if options:
            raise ConfigError(f"{min(options)} is given beside weights {weights}, which bring their own: leave it out")
        return Segmenter(load_method(Path(weights))[0], device=device, size=size, resize=resize)
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}: give one of {', '.join(METHODS)}")
    kind = METHODS[method]
    if kind.requires_training:
        raise UserError(f"{method} learns but no weights are given: fss.load(FILE), of a run of launch/meta_train.py")
    names = [field.name for field in fields(kind.Config)]
    if unknown := sorted(options.keys() - names):
        raise ConfigError(f"{unknown[0]} is no option of {method}: it has {', '.join(names)}")
    config = kind.Config(**options)
    require_valid_size(config, size, "size")  # before files of gigabytes are read
    return Segmenter(kind(config), device=device, size=size, resize=resize)


class MethodJob(Protocol):
    """What `load_segmenter` needs of a job; the fields are described in launch/predict.py."""

    size: int | None
    device: str
    method: Any
    weights: str | None


def load_segmenter(job: MethodJob) -> tuple[Segmenter, list[str]]:
    """The segmenter that a command asks for, and what its user must know of it.

    Raises UserError for what the user can mend.
    """
    require_valid_size(job.method, job.size, "size")  # before files of gigabytes are read
    method, header, notes = load_for_evaluation(job)
    segmenter = Segmenter(method, device=job.device, size=job.size)
    return segmenter, [*notes, *method.caveats(header.episodes_seen or 0)]


class PredictJob(MethodJob, Protocol):
    """What `segment_files` needs of a job; its fields are described in launch/predict.py."""

    support: list[str]
    mask: list[str]
    name: list[str]
    query: list[str]


def segment_files(job: PredictJob, out: Path) -> Path:
    """Segment the queries of `job` and write label maps, overlays and a contact sheet into `out`, which is returned.

    A label map is an 8-bit index PNG of the query's size with a palette; labels.txt says which class an index is.
    Nothing is written before all supports are read; a query that cannot be read stops none of the others.
    Raises UserError for what a user can mend.
    """
    shots = _shots(job)
    queries = _pictures(job, out)
    segmenter, notes = load_segmenter(job)
    known = segmenter.learn(shots)
    shown = {
        name: [label_maps.overlaid(read_photograph(p), label * (read_mask(m) == 1), len(known)) for p, m in pairs]
        for label, (name, pairs) in zip(np.arange(1, len(shots) + 1, dtype=np.uint8), shots.items(), strict=True)
    }
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "labels.txt", "".join(f"{label} {name}\n" for label, name in enumerate(known, 1)).encode())
    found, unread = [], []
    for path in track(queries, "segmenting", disable=not sys.stdout.isatty()):
        try:
            prediction = segmenter.find(path, known)
        except UserError as error:
            unread.append(str(error))
            continue
        prediction.save_labels(out / f"{path.stem}.png")
        Image.fromarray(prediction.overlay()).save(out / f"{path.stem}_overlay.jpg")
        notes += [f"{path.name}: {flag}" for flag in prediction.flags]
        if len(found) < SHOWN:
            found.append((path.name, label_maps.overlaid(prediction.image, prediction.labels, len(known))))
    for text in notes:
        print(f"note: {text}")
    label_maps.contact_sheet(shown, found, out / f"{SHEET}.png")
    if unread:
        raise UserError(f"{len(unread)} of {len(queries)} queries were left out; {unread[0]}")
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


def _pictures(job: PredictJob, out: Path) -> list[Path]:
    """The queries that were named, and those in folders that were, by name; none of them would be written over."""
    found = []
    for path in map(Path, job.query):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path} holds no picture ({', '.join(SUFFIXES)}): give a folder that does")
        found += inside
    if not found:
        raise UserError("no --query is given: name pictures to segment, or folders of them")
    stems = [path.stem for path in found]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise UserError(f"two queries are called {twice}: rename one, or segment them into another --out")
    if SHEET in stems:
        raise UserError(f"a query is called {SHEET}, as the contact sheet will be: rename it")
    given = [*found, *map(Path, job.support), *map(Path, job.mask)]
    if there := next((path for path in given if path.parent.resolve() == out.resolve()), None):
        raise UserError(f"{there} lies in --out {out}, where label maps are written: give another folder")
    return found


def _name(picture: Picture) -> str:
    return "of the array" if isinstance(picture, np.ndarray) else str(picture)
