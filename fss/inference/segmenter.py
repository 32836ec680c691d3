"""Segmentation of a user's own pictures: from supports with masks to label maps of queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from fss.data.transforms import Resize
from fss.errors import ConfigError, RunError, UserError
from fss.evaluate.loading import load_for_evaluation
from fss.evaluate.plan import require_valid_size
from fss.evaluate.predictor import EpisodePredictor
from fss.inference.user_images import Picture, read_mask, read_photograph
from fss.methods import METHODS, load_method
from fss.methods.base import EpisodeMethod, Features
from fss.numerics import numerics
from fss.report import label_map_figures as label_maps
from shards.format import IGNORE_LABEL

Supports = Sequence[tuple[Picture, Picture]]
"""Photograph and mask of each shot."""
EncodedSupports = dict[str, list[Features]]
"""Class name -> the method's description of each support of that class."""
OBJECT = "object"  # the class of supports without a name
MAX_CLASSES = IGNORE_LABEL - 1  # a label map of 8 bits has no index for more


@dataclass(frozen=True)
class SegmentedImage:
    """A segmented query."""

    image: np.ndarray
    """The query, uint8 RGB [H, W, 3]."""
    labels: np.ndarray
    """uint8 [H, W]: 0 background, i the i-th of `classes`."""
    classes: tuple[str, ...]
    confidence: float | None
    """Mean probability, above 0.5, of the class against the background over all pixels of classes; None if there are
    no such pixels or the method gives no probabilities."""
    flags: tuple[str, ...] = ()
    """What was unusual about the prediction, a few words each."""

    @property
    def sure(self) -> float | None:
        """`confidence` under its earlier name."""
        return self.confidence

    def mask(self, name: str = OBJECT) -> np.ndarray:
        """The pixels of the class, bool [H, W]."""
        return self.labels == self.classes.index(name) + 1

    def save_labels(self, path: Path) -> None:
        """Write the labels as a PNG of 8-bit indices with a palette: a colour for every class."""
        labels = Image.fromarray(self.labels, "P")
        labels.putpalette(label_maps.label_colours(len(self.classes)).round().astype(np.uint8).tobytes())
        labels.save(path)

    def overlay(self) -> np.ndarray:
        """The query in grey with its classes in colour, uint8 RGB [H, W, 3]."""
        return label_maps.tinted(self.image, self.labels, len(self.classes))


class Segmenter:
    """Segments queries by supports.

    device: as torch names them; 'auto' is CUDA if there is a device. size: side of the square that the method sees,
    pixels; None: its own. resize: how a picture is fitted into the square.
    Raises UserError if there is no CUDA device, ConfigError if the method does not take the size.
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
        cuda = torch.cuda.is_available()
        self.device = torch.device(("cuda" if cuda else "cpu") if device == "auto" else device)
        if self.device.type == "cuda" and not cuda:
            raise UserError(f"device is {device} but torch sees no CUDA device: use auto or cpu")
        self.method = method
        self.size = size or method.config.size
        self.resize = resize
        for part in (method.trainable, method.non_trainable):
            part.to(self.device)
        self._predictor = EpisodePredictor(
            method, device=self.device, size=self.size, resize=resize, autocast=numerics
        )  # float32 with all digits, whatever the program around has set

    def encode_supports(self, supports: Supports | Mapping[str, Supports]) -> EncodedSupports:
        """Encode K >= 1 supports of a class, or of each of several classes by name, for `segment`.

        Raises UserError if a file cannot be read, or a mask is empty or not of its photograph's size.
        """
        named = supports if isinstance(supports, Mapping) else {OBJECT: supports}
        if not named or not all(named.values()):
            raise UserError("supports are empty: give at least one photograph with its mask for every class")
        if len(named) > MAX_CLASSES:
            raise UserError(f"supports are of {len(named)} classes: give at most {MAX_CLASSES}, others to another run")
        return {name: [self._encode_support(*shot) for shot in shots] for name, shots in named.items()}

    def segment(self, query: Picture, supports: Mapping[str, Sequence[Features]]) -> SegmentedImage:
        """Segment a query by encoded supports; a pixel belongs to the class of the largest margin, if that is above 0.

        Raises UserError, naming the query, if it cannot be read or its logits are not finite.
        """
        image = read_photograph(query)
        square, frame = self._predictor.fit(image)
        with self._predictor as predictor:
            features = predictor.encode_query(square, predictor.encode(square))
            try:
                predictions = [predictor.predict(features, shots, _name(query)) for shots in supports.values()]
            except RunError:
                raise UserError(
                    f"{_name(query)} cannot be segmented, as its logits are not finite: give other weights"
                ) from None
            margins = [frame.resize_margin(prediction.margin, "original") for prediction in predictions]
        margin, index = torch.stack(margins).max(0)  # [H, W] each
        foreground = margin > 0
        labels = torch.where(foreground, index + 1, 0).to(torch.uint8).cpu().numpy()
        confidence = None
        if self.method.has_probabilities and foreground.any():
            confidence = float(margin[foreground].sigmoid().mean())
        flags = tuple(dict.fromkeys(flag for prediction in predictions for flag in prediction.flags))
        return SegmentedImage(image, labels, tuple(supports), confidence, flags)

    def predict(self, query: Picture, supports: Supports | Mapping[str, Supports]) -> SegmentedImage:
        """Encode the supports and segment a single query. Raises UserError as both do."""
        return self.segment(query, self.encode_supports(supports))

    learn = encode_supports  # its earlier name

    def find(self, query: Picture, known: EncodedSupports) -> SegmentedImage:
        """`segment` under its earlier name."""
        return self.segment(query, known)

    def _encode_support(self, photograph: Picture, mask: Picture) -> Features:
        square, frame = self._predictor.fit(read_photograph(photograph))
        pixels = read_mask(mask)
        if pixels.shape != (frame.height, frame.width):
            raise UserError(
                f"mask {_name(mask)} has {pixels.shape[1]} x {pixels.shape[0]} pixels but {_name(photograph)} has "
                f"{frame.width} x {frame.height}: give a mask of the photograph's own size"
            )
        if not (pixels == 1).any():
            raise UserError(f"mask {_name(mask)} marks no pixel: paint the object in any colour on black")
        with self._predictor as predictor:
            return predictor.encode_support(predictor.encode(square), pixels, frame)


def load(
    weights: str | Path | None = None,
    *,
    method: str = "gfsam",
    device: str = "auto",
    size: int | None = None,
    resize: Resize = "exact",
    **options: Any,
) -> Segmenter:
    """Load a `Segmenter` of the method that a training exported to `weights`, or of a method without training.

    method, options: the method without training and its options, as on the command line (`--method.dino_weights` and so
    on). The weights bring both.
    Raises WeightsError or ConfigError if a file or an option does not fit.
    """
    if weights is not None:
        if options:
            raise ConfigError(
                f"{min(options)} is given together with weights {weights}, which bring their own: leave it out"
            )
        return Segmenter(load_method(Path(weights))[0], device=device, size=size, resize=resize)
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}: give one of {', '.join(METHODS)}")
    kind = METHODS[method]
    if kind.requires_training:
        raise UserError(
            f"{method} needs training but no weights are given: fss.load(FILE), of a run of launch/meta_train.py"
        )
    if not issubclass(kind, EpisodeMethod):
        raise ConfigError(f"method is {method!r}, which does not segment by supports: give a method that does")
    names = [field.name for field in fields(kind.Config)]
    if unknown := sorted(options.keys() - names):
        raise ConfigError(f"{unknown[0]} is no option of {method}: it has {', '.join(names)}")
    config = kind.Config(**options)
    require_valid_size(config, size, "size")  # before files of gigabytes are read
    return Segmenter(kind(config), device=device, size=size, resize=resize)


class MethodJob(Protocol):
    """The options of a job that `load_segmenter` reads; the fields are described in launch/predict.py."""

    @property
    def size(self) -> int | None: ...
    @property
    def device(self) -> str: ...
    @property
    def method(self) -> Any: ...
    @property
    def weights(self) -> str | None: ...


def load_segmenter(job: MethodJob) -> tuple[Segmenter, list[str]]:
    """Load the segmenter that a command names, with sentences on how its method differs from the paper's.

    Raises UserError if an option or a file does not fit.
    """
    require_valid_size(job.method, job.size, "size")  # before files of gigabytes are read
    method, header, differences = load_for_evaluation(job)
    segmenter = Segmenter(method, device=job.device, size=job.size)
    return segmenter, [*differences, *method.caveats(header.episodes_seen or 0)]


def _name(picture: Picture) -> str:
    return "the array" if isinstance(picture, np.ndarray) else str(picture)
