"""Training runs of methods that take label maps."""

from typing import Any, Protocol

import numpy as np

from fss.data.dataset import DataConfig
from fss.data.episodes import SplitConfig
from fss.data.folds import training_fold
from fss.data.label_dataset import LabelReader, LabelSources
from fss.data.paired_transforms import AugmentConfig
from fss.data.shard_sets import open_shard_set
from fss.distributed.context import DistributedContext
from fss.distributed.runtime import RunConfig
from fss.methods.base import LabelMethod, Method
from fss.train.tasks.task import ValidatedTask, wrong_kind
from fss.train.validation.episode_validation import held_out_classes
from fss.train.validation.label_validation import LabelValidateConfig, LabelValidation, validation_images
from shards.format import Manifest, ShardError


class LabelJob(Protocol):
    """The options that the task reads."""

    @property
    def run(self) -> RunConfig:
        """The group `run`."""
        ...

    @property
    def data(self) -> DataConfig:
        """The group `data`."""
        ...

    @property
    def episodes(self) -> SplitConfig:
        """The group `episodes`."""
        ...

    @property
    def augment(self) -> AugmentConfig:
        """The group `augment`."""
        ...

    @property
    def validate(self) -> LabelValidateConfig:
        """The group `validate`."""
        ...


class LabelTask(ValidatedTask):
    """Training on label maps of a fold's base classes; validated on images that are left out."""

    kind = "base"
    unit = "images"
    data: LabelSources
    method: LabelMethod
    validation: LabelValidation | None = None

    def __init__(self, job: LabelJob, method: Method, context: DistributedContext) -> None:
        if not isinstance(method, LabelMethod):
            raise wrong_kind(method, LabelMethod)
        self.job = job
        self.method = method
        self.shards = open_shard_set(job.data, context.on_main)
        manifest, split = self.shards.manifest, job.episodes
        self.fold = training_fold(split.scheme, split.fold, manifest, split.novel)
        self.held_out = held_out_classes(job.validate, self.fold)
        self.classes = {i: manifest.classes[i] for i in self.fold.base if i not in self.held_out}
        validating, images = validation_images(job.validate, self.shards, job.data.cache)
        training = np.arange(len(self.shards))
        if validating is self.shards:
            training = np.setdiff1d(training, images)
        require_all_classes(manifest, training, self.classes)
        method.set_classes(self.classes, context.collectives)
        self.samples = len(training)
        self.data = LabelSources(
            read=LabelReader(self.shards, list(self.classes)), images=training, augment=job.augment
        )
        self.measure_every = 0
        if len(images):
            self.validation = LabelValidation(
                validating, images.tolist(), self.classes, manifest, size=method.config.size, context=context
            )
            self.measure_every = job.validate.every
            self.best_metric = "val/miou"

    def startup_messages(self) -> list[str]:
        """The fold, the training classes and images, and the validation."""
        split, names = self.job.episodes, self.shards.manifest.classes
        messages = [
            f"scheme {split.scheme}, fold {split.fold}: {len(self.classes)} base classes to learn on {self.samples} "
            f"images; novel, and background here: {', '.join(names[c] for c in self.fold.novel)}"
        ]
        if self.held_out:
            messages.append(
                "background too, since meta-training with validate.split base holds them out: "
                + ", ".join(names[c] for c in self.held_out)
            )
        if self.validation:
            messages.append(f"validation on {len(self.validation.images)} images")
        return messages

    def export_metadata(self, seen: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The number of images seen, the fold, and the best mIoU."""
        scores = [row["val/miou"] for row in rows if "val/miou" in row]
        return {
            "images_seen": seen,
            "scheme": self.fold.scheme,
            "fold": self.fold.fold,
            "novel": list(self.fold.novel),
            "held_out": list(self.held_out),
            "best_miou": max(scores, default=None),
        }


def require_all_classes(manifest: Manifest, images: np.ndarray, classes: dict[int, str]) -> None:
    """Raise ShardError, naming the classes, if no training image shows one of them. images: indices, int [n]."""
    present = {class_id for index in images for class_id in manifest.samples[index].classes}
    if missing := [name for class_id, name in classes.items() if class_id not in present]:
        raise ShardError(
            f"none of the {len(images)} training images of set {manifest.name} shows {', '.join(missing[:5])}"
            + (f" or {len(missing) - 5} more base classes" if len(missing) > 5 else "")
            + ": give a set that does, lower validate.fraction, or name what is absent with episodes.scheme list"
        )
