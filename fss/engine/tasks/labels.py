"""Runs of methods that learn from label maps."""

from typing import Any

import numpy as np

from fss.data.folds import training_fold
from fss.data.label_feed import LabelData, LabelReader
from fss.engine.dist import World
from fss.engine.reports import labels as labels_page
from fss.engine.reports.page import Story
from fss.engine.run import RunDir
from fss.engine.tasks.task import ValidatedTask, open_shards
from fss.engine.validation.episodes import held_out
from fss.engine.validation.labels import LabelValidation, validation_images
from fss.methods.base import Method
from shards.format import Manifest, ShardError


class LabelTask(ValidatedTask):
    """Learning the base classes of a fold from label maps; measured on images that are left out."""

    kind = "base"
    unit = "images"

    def __init__(self, job: Any, method: Method, world: World) -> None:
        self._job = job
        self.shards = open_shards(job.data, world)
        manifest, split = self.shards.manifest, job.episodes
        self.fold = training_fold(split.scheme, split.fold, manifest, split.novel)
        self.held_out = held_out(job.validate, self.fold)
        self.classes = {i: manifest.classes[i] for i in self.fold.base if i not in self.held_out}
        validating, images = validation_images(job.validate, self.shards, job.data.cache)
        training = np.arange(len(self.shards))
        if validating is self.shards:
            training = np.setdiff1d(training, images)
        require_all_shown(manifest, training, self.classes)
        method.teach(self.classes, world.peers)
        self.samples = len(training)
        self.data = LabelData(read=LabelReader(self.shards, list(self.classes)), images=training, augment=job.augment)
        self.every = 0
        if len(images):
            self.validation = LabelValidation(
                validating, images, self.classes, manifest, size=method.config.size, world=world
            )
            self.every = job.validate.every
            self.selects_by = "val/miou"

    def opening(self) -> list[str]:
        split, names = self._job.episodes, self.shards.manifest.classes
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

    def story(self, method: Method, run: RunDir) -> Story:
        data, seed = self._job.data, self._job.run.seed
        return labels_page.story(run, method, self.data, self.validation, config=data, seed=seed)

    def facts(self, seen: int, rows: list[dict]) -> dict[str, object]:
        scores = [row["val/miou"] for row in rows if "val/miou" in row]
        return {
            "images_seen": seen,
            "scheme": self.fold.scheme,
            "fold": self.fold.fold,
            "novel": self.fold.novel,
            "held_out": self.held_out,
            "best_miou": max(scores, default=None),
        }


def require_all_shown(manifest: Manifest, images: np.ndarray, classes: dict[int, str]) -> None:
    """Raise ShardError, naming the classes, where no training image shows one of them."""
    shown = {class_id for index in images for class_id in manifest.samples[index].classes}
    if missing := [name for class_id, name in classes.items() if class_id not in shown]:
        raise ShardError(
            f"none of the {len(images)} training images of set {manifest.name} shows {', '.join(missing[:5])}"
            + (f" or {len(missing) - 5} more base classes" if len(missing) > 5 else "")
            + ": give a set that does, lower validate.share, or name what is absent with episodes.scheme list"
        )
