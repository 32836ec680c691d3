"""Runs of methods that learn from label maps."""

from typing import Any

import numpy as np

from fss.data.folds import training_fold
from fss.data.label_dataset import LabelReader, LabelSources
from fss.data.shard_sets import open_shard_set
from fss.distributed.context import DistributedContext
from fss.methods.base import Method
from fss.train.tasks.task import ValidatedTask
from fss.train.validation.episode_validation import held_out
from fss.train.validation.label_validation import LabelValidation, validation_images
from shards.format import Manifest, ShardError


class LabelTask(ValidatedTask):
    """Learning the base classes of a fold from label maps; measured on images that are left out."""

    kind = "base"
    unit = "images"

    def __init__(self, job: Any, method: Method, context: DistributedContext) -> None:
        self.job = job
        self.shards = open_shard_set(job.data, context.on_main)
        manifest, split = self.shards.manifest, job.episodes
        self.fold = training_fold(split.scheme, split.fold, manifest, split.novel)
        self.held_out = held_out(job.validate, self.fold)
        self.classes = {i: manifest.classes[i] for i in self.fold.base if i not in self.held_out}
        validating, images = validation_images(job.validate, self.shards, job.data.cache)
        training = np.arange(len(self.shards))
        if validating is self.shards:
            training = np.setdiff1d(training, images)
        require_all_shown(manifest, training, self.classes)
        method.set_classes(self.classes, context.collectives)
        self.samples = len(training)
        self.data = LabelSources(
            read=LabelReader(self.shards, list(self.classes)), images=training, augment=job.augment
        )
        self.every = 0
        if len(images):
            self.validation = LabelValidation(
                validating, images, self.classes, manifest, size=method.config.size, context=context
            )
            self.every = job.validate.every
            self.selects_by = "val/miou"

    def opening(self) -> list[str]:
        split, names = self.job.episodes, self.shards.manifest.classes
        said = [
            f"scheme {split.scheme}, fold {split.fold}: {len(self.classes)} base classes to learn on {self.samples} "
            f"images; novel, and background here: {', '.join(names[c] for c in self.fold.novel)}"
        ]
        if self.held_out:
            said.append(
                "background too, since meta-training with validate.split base holds them out: "
                + ", ".join(names[c] for c in self.held_out)
            )
        if self.validation:
            said.append(f"validation on {len(self.validation.images)} images")
        return said

    def export_metadata(self, seen: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        scores = [row["val/miou"] for row in rows if "val/miou" in row]
        return {
            "images_seen": seen,
            "scheme": self.fold.scheme,
            "fold": self.fold.fold,
            "novel": list(self.fold.novel),
            "held_out": list(self.held_out),
            "best_miou": max(scores, default=None),
        }


def require_all_shown(manifest: Manifest, images: np.ndarray, classes: dict[int, str]) -> None:
    """Raise ShardError, naming the classes, where no training image shows one of them."""
    shown = {class_id for index in images for class_id in manifest.samples[index].classes}
    if missing := [name for class_id, name in classes.items() if class_id not in shown]:
        raise ShardError(
            f"none of the {len(images)} training images of set {manifest.name} shows {', '.join(missing[:5])}"
            + (f" or {len(missing) - 5} more base classes" if len(missing) > 5 else "")
            + ": give a set that does, lower validate.fraction, or name what is absent with episodes.scheme list"
        )
