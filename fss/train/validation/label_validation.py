"""Validation while a base learner trains: intersection over union of the classes it learns, on images left out."""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

SHOWN = 6  # images drawn at a validation
THREADS = 2  # that read ahead of the network


@dataclass(frozen=True, kw_only=True)
class LabelValidateConfig:
    """Which base classes are learned, and on which images the best weights of a run are chosen."""

    split: Literal["base", "novel", "none"] = "base"
    """The validate.split of the meta-training that this is for. base: the base classes that it holds out are not
    learned here either. novel, none: all base classes are learned, as the published program does."""
    classes: int | None = None
    """The validate.classes of that meta-training: base classes held out ('base'); null: a fifth of them."""
    shards: str | None = None
    """Packed set to validate on; null: a share of the training shards."""
    fraction: float = 0.1
    """Share of the images that is kept from training where `shards` is null, chosen by a hash of their keys; 0: the
    last weights are all there is."""
    images: int | None = None
    """The most images to validate on, spread evenly over those there are; null: all."""
    every: int | None = None
    """Optimizer steps between validations; null: a twentieth of the run."""

    def __post_init__(self) -> None:
        at_least("validate", self, every=1, classes=1, images=1)
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"validate.fraction is {self.fraction}: give a share from 0 to below 1, such as 0.1")


@dataclass(frozen=True, kw_only=True)
class LabelExample:
    """One image uint8 RGB [H, W, 3] and two label maps uint8 [H, W]: 0 background, 1, 2, ... classes, 255 unknown."""

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    names: tuple[str, ...]
    """Of the labels 1, 2, ..."""


def kept_for_validation(manifest: Manifest, fraction: float) -> np.ndarray:
    """Which samples validate, bool [samples]: a matter of their keys alone, and for crops of their photograph's."""
    names = [row.crop_of or row.key for row in manifest.samples]
    draws = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names]
    return np.array(draws) < fraction


def validation_images(
    config: LabelValidateConfig, training: ShardSet, cache: str | None
) -> tuple[ShardSet, np.ndarray]:
    """The set that is validated on, and the indices of its images that do."""
    if config.shards:
        shards = ShardSet(config.shards, cache=cache)
        return shards, _some(np.arange(len(shards)), config)
    kept = np.flatnonzero(kept_for_validation(training.manifest, config.fraction))
    if config.fraction and not len(kept):
        raise ConfigError(
            f"validate.fraction {config.fraction} keeps none of the {len(training)} images: raise it, give validate.shards, "
            "or set it to 0"
        )
    return training, _some(kept, config)


def _some(images: np.ndarray, config: LabelValidateConfig) -> np.ndarray:
    return np.array(spread(images, config.images or len(images)), images.dtype)


class LabelValidation:
    """The validation images of a run, and the score of a method on them.

    An image is fitted into a square of `size` pixels and scored at its own size; pixels of unknown class do not count.
    The mean is over the classes that the images show.

    Raises ShardError where the shards name the classes otherwise, or show none of them.
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
        self.pixels = {  # what the images show of each class, by name
            name: sum(samples[index].classes.get(class_id, 0) for index in self.images)
            for class_id, name in classes.items()
        }
        self.shown = [name for name, pixels in self.pixels.items() if pixels]
        if not self.shown:
            raise ShardError(
                f"none of the {len(self.images)} validation images shows a class to learn: raise validate.fraction, give "
                "validate.shards, or set validate.fraction to 0"
            )

    def __call__(self, method: LabelMethod) -> dict[str, float]:
        """val/miou and each class's val/iou/NAME, as fractions. Collective; equal on all ranks.

        Every image is looked at alone and gives integers: the score does not depend on the ranks.
        """
        counts, failure = np.zeros((2, 1 + len(self.names)), np.int64), None
        try:
            for image, labels in self._ahead(self.images[self.context.rank :: self.context.world_size]):
                counts += intersections_and_unions(self.predict(method, image), labels, len(self.names))
                self.context.report_progress("validating")
        except (ShardError, UserError) as error:
            failure = error
        everyone, failures = zip(*self.context.gather_objects((counts, failure)), strict=True)
        if error := next((failure for failure in failures if failure), None):
            raise error
        intersections, unions = sum(everyone)[:, 1:]
        scores = dict(zip(self.names, (intersections / unions.clip(min=1)).tolist(), strict=True))
        mean = sum(scores[name] for name in self.shown) / len(self.shown)
        return {"val/miou": mean, **{f"val/iou/{name}": scores[name] for name in self.shown}}

    def predict(self, method: LabelMethod, image: np.ndarray) -> np.ndarray:
        """What `method` makes of an image uint8 [H, W, 3]: labels uint8 [H, W]."""
        fitted, frame = fit_image(image, self.size, "exact")  # [3, S, S]
        with evaluation_mode(method), torch.inference_mode(), self.context.autocast():
            logits = method.segment(fitted[None].to(self.context.device))  # [1, 1 + n, h, w]
        return restored(logits.float(), frame)

    def examples(self, method: LabelMethod) -> list[LabelExample]:
        """Images, their labels and the prediction, the same images at every validation."""
        rows = []
        for index in spread(self.images, SHOWN):
            image, labels = self.read(index)
            prediction = self.predict(method, image)
            rows.append(LabelExample(image=image, truth=labels, prediction=prediction, names=tuple(self.names)))
        return rows

    def _ahead(self, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels, read by threads a few ahead. Raises ShardError where one cannot be read."""
        with ThreadPoolExecutor(THREADS) as pool:
            coming = deque()
            for index in indices:
                coming.append(pool.submit(self.read, index))
                if len(coming) > 2 * THREADS:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, evenly over them."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def restored(logits: Tensor, frame: Frame) -> np.ndarray:
    """Labels uint8 [H, W] of logits [1, 1 + n, h, w] over the square of `frame`."""
    square = interpolate(logits, (frame.size, frame.size), mode="bilinear", align_corners=True)
    valid = square[..., : frame.valid_h, : frame.valid_w]
    full = interpolate(valid, (frame.height, frame.width), mode="bilinear", align_corners=False)
    return full[0].argmax(0).to(torch.uint8).cpu().numpy()


def intersections_and_unions(prediction: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Pixels, int64 [2, 1 + classes]: intersections and unions of background and classes, over the known pixels.

    prediction: uint8 [H, W] of 0 to `classes`. labels: the same, or 255 where nothing is known.
    """
    known = labels != IGNORE_LABEL
    prediction, labels = prediction[known], labels[known]
    found, there, both = (
        np.bincount(values, minlength=1 + classes) for values in (prediction, labels, labels[prediction == labels])
    )
    return np.stack([both, found + there - both])
