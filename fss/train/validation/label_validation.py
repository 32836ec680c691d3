"""Validation during training on label maps: intersection over union of the trained classes, on images left out."""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fss.data.label_dataset import LabelReader
from fss.data.transforms import Frame, fit_image
from fss.distributed.context import DistributedContext
from fss.errors import ConfigError, UserError, at_least
from fss.evaluate.predictor import evaluation_mode
from fss.methods.base import LabelMethod
from fss.train.validation.episode_validation import check_names
from shards.format import IGNORE_LABEL, Manifest, ShardError
from shards.read import ShardSet

EXAMPLES = 6  # images drawn at a validation
THREADS = 2  # that read images ahead of the network


@dataclass(frozen=True, kw_only=True)
class LabelValidateConfig:
    """The base classes to train on, and the images on which the best weights of a run are chosen."""

    split: Literal["base", "novel", "none"] = "base"
    """The validate.split of the meta-training that this is for. base: the base classes that it holds out are not
    trained on here either. novel, none: all base classes are trained on, as the reference implementation does."""
    classes: int | None = None
    """The validate.classes of that meta-training: base classes held out ('base'); null: a fifth of them."""
    shards: str | None = None
    """Packed set to validate on; null: a fraction of the training shards."""
    fraction: float = 0.1
    """Fraction of the images that is kept from training if `shards` is null, chosen by a hash of their keys; 0: no
    validation, only the last weights are kept."""
    images: int | None = None
    """Maximum number of images to validate on, evenly spread over those available; null: all."""
    every: int | None = None
    """Optimizer steps between validations; null: a twentieth of the run."""

    def __post_init__(self) -> None:
        at_least("validate", self, every=1, classes=1, images=1)
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"validate.fraction is {self.fraction}: give a fraction from 0 to below 1, such as 0.1")


@dataclass(frozen=True, kw_only=True)
class LabelExample:
    """One image uint8 RGB [H, W, 3] and two label maps uint8 [H, W]: 0 background, 1, 2, ... classes, 255 unknown."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    names: tuple[str, ...]
    """Names of the labels 1, 2, ..."""


def kept_for_validation(manifest: Manifest, fraction: float) -> np.ndarray:
    """Mask of the validation samples, bool [samples]; depends on their keys only, of crops on the photograph's key."""
    names = [row.crop_of or row.key for row in manifest.samples]
    draws = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names]
    return np.array(draws) < fraction


def validation_images(
    config: LabelValidateConfig, training: ShardSet, cache: str | None
) -> tuple[ShardSet, np.ndarray]:
    """The set to validate on, and the indices of its validation images, int [n].

    Raises ConfigError if a fraction above 0 keeps no image.
    """
    if config.shards:
        shards = ShardSet(config.shards, cache=cache)
        return shards, _limited(np.arange(len(shards)), config)
    kept = np.flatnonzero(kept_for_validation(training.manifest, config.fraction))
    if config.fraction and not len(kept):
        raise ConfigError(
            f"validate.fraction {config.fraction} keeps none of the {len(training)} images: raise it, give "
            "validate.shards, or set it to 0"
        )
    return training, _limited(kept, config)


def _limited(images: np.ndarray, config: LabelValidateConfig) -> np.ndarray:
    return np.array(spread(images.tolist(), config.images or len(images)), images.dtype)


class LabelValidation:
    """The validation images of a run, and the score of a method on them.

    An image is fitted into a square of `size` pixels and scored at its own size; pixels of unknown class do not count.
    The mean is over the classes that the images show.

    Raises ShardError if the shards name the classes differently, or show none of them.
    """

    def __init__(
        self,
        shards: ShardSet,
        images: Sequence[int],
        classes: Mapping[int, str],
        training: Manifest,
        size: int,
        context: DistributedContext,
    ) -> None:
        check_names(list(classes), training, shards)
        self.shards = shards
        self.images = [int(index) for index in images]
        self.names = list(classes.values())
        self.size = size
        self.context = context
        self.read = LabelReader(shards, list(classes))
        samples = shards.manifest.samples
        self.pixels = {  # of each class in the images, by name
            name: sum(samples[index].classes.get(class_id, 0) for index in self.images)
            for class_id, name in classes.items()
        }
        self.present = [name for name, pixels in self.pixels.items() if pixels]
        if not self.present:
            raise ShardError(
                f"none of the {len(self.images)} validation images shows a class to learn: raise validate.fraction, "
                "give validate.shards, or set validate.fraction to 0"
            )

    def __call__(self, method: LabelMethod) -> dict[str, float]:
        """Score `method`: val/miou and val/iou/NAME of each class, fractions, equal on all ranks. Collective.

        Every image is predicted by itself and gives integers: the score does not depend on the number of ranks.
        Raises ShardError, on every rank, if an image cannot be read.
        """
        counts = np.zeros((2, 1 + len(self.names)), np.int64)
        failure: ShardError | UserError | None = None
        try:
            for image, labels in self._ahead(self.images[self.context.rank :: self.context.world_size]):
                counts += intersections_and_unions(self.predict(method, image), labels, len(self.names))
                self.context.report_progress("validating")
        except (ShardError, UserError) as error:
            failure = error
        gathered = self.context.gather_objects((counts, failure))
        if first := next((failure for _, failure in gathered if failure), None):
            raise first
        intersections, unions = np.sum([counts for counts, _ in gathered], axis=0)[:, 1:]
        scores = dict(zip(self.names, (intersections / unions.clip(min=1)).tolist(), strict=True))
        mean = sum(scores[name] for name in self.present) / len(self.present)
        return {"val/miou": mean, **{f"val/iou/{name}": scores[name] for name in self.present}}

    def predict(self, method: LabelMethod, image: np.ndarray) -> np.ndarray:
        """Predict an image uint8 [H, W, 3]: labels uint8 [H, W]."""
        fitted, frame = fit_image(image, self.size, "exact")  # [3, S, S]
        with evaluation_mode(method), torch.inference_mode(), self.context.autocast():
            logits = method.segment(fitted[None].to(self.context.device))  # [1, 1 + n, h, w]
        return to_labels(logits.float(), frame)

    def examples(self, method: LabelMethod) -> list[LabelExample]:
        """Images, their labels and the prediction, the same images at every validation."""
        rows = []
        for index in spread(self.images, EXAMPLES):
            image, labels = self.read(index)
            prediction = self.predict(method, image)
            rows.append(LabelExample(image=image, truth=labels, prediction=prediction, names=tuple(self.names)))
        return rows

    def _ahead(self, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield images and labels, which threads read a few ahead. Raises ShardError if one cannot be read."""
        with ThreadPoolExecutor(THREADS) as pool:
            pending: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
            for index in indices:
                pending.append(pool.submit(self.read, index))
                if len(pending) > 2 * THREADS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly spread over them."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def to_labels(logits: Tensor, frame: Frame) -> np.ndarray:
    """Labels uint8 [H, W], at the size of the image, of logits [1, 1 + n, h, w] over the square of `frame`."""
    square = interpolate(logits, (frame.size, frame.size), mode="bilinear", align_corners=True)
    valid = square[..., : frame.valid_h, : frame.valid_w]
    full = interpolate(valid, (frame.height, frame.width), mode="bilinear", align_corners=False)
    return full[0].argmax(0).to(torch.uint8).cpu().numpy()


def intersections_and_unions(prediction: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels, int64 [2, 1 + classes]: intersections and unions of background and classes, over the known pixels.

    prediction: uint8 [H, W] of 0 to `classes`. labels: the same, or 255 for unknown.
    """
    known = labels != IGNORE_LABEL
    prediction, labels = prediction[known], labels[known]
    predicted, true, both = (
        np.bincount(values, minlength=1 + classes) for values in (prediction, labels, labels[prediction == labels])
    )
    return np.stack([both, predicted + true - both])
