"""What the page of a base learner's training tells: loss and scores beside constant answers, classes, a validation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fss.data.batch import LabelSpec
from fss.data.dataset import DataConfig
from fss.data.label_dataset import LabelDataset, LabelSources
from fss.methods.base import LabelMethod
from fss.report.class_charts import Bar, class_bars
from fss.report.curves import series
from fss.report.page import Picture, ReportSection, Verdict
from fss.report.validation_section import best_weights, last_picture
from fss.tracking.run_dir import RunDir
from fss.train.tasks.label_task import LabelTask
from fss.train.validation.label_validation import LabelValidation
from shards.format import IGNORE_LABEL

MARGIN = 0.1  # of the constant answer's loss: taken over some dozen images, both are off by a few percent
SAMPLE = 96  # training images of which the shares of the classes are taken
TAIL = 10  # logged steps over which a final loss is averaged


def report_section(run: RunDir, method: LabelMethod, task: LabelTask) -> ReportSection:
    """Judge the logged rows of `run`, draw its classes, and copy its last validation picture. For one rank."""
    data, validation, config, seed = task.data, task.validation, task.job.data, task.job.run.seed
    rows = run.rows()
    shares = label_shares(method.batch_spec, data, config, seed)
    levels = {"loss": entropy(shares), "accuracy": float(shares.max())}
    if validation:
        levels["val/miou"] = constant_score(validation)
    return ReportSection(
        verdicts=verdicts(rows, levels),
        levels=levels,
        guess="constant answer",
        guess_explained="the best that an answer without a look at the image gives, of the loss the same probabilities "
        "for every pixel, of the rest one class everywhere",
        pictures=_pictures(run, rows, validation) if validation else [],
        ran={"best weights": _best(run, rows, validation)},
    )


def label_shares(spec: LabelSpec, data: LabelSources, config: DataConfig, seed: int) -> np.ndarray:
    """Share of each label among the known pixels of the first augmented training images, float [1 + classes]."""
    dataset = LabelDataset(spec, data, config, seed)
    counts = np.zeros(256, np.int64)
    for start in range(0, SAMPLE, 8):
        counts += np.bincount(dataset.batch(start, start + 8).labels.numpy().ravel(), minlength=256)
    known = counts[:IGNORE_LABEL]
    return known / max(known.sum(), 1)


def entropy(shares: np.ndarray) -> float:
    """What cross-entropy comes to if every pixel gets these probabilities, nats."""
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())


def constant_score(validation: LabelValidation) -> float:
    """val/miou of the best single class at every pixel.

    As good as exact: areas are those in the manifest, and pixels that are not counted are taken for background.
    """
    samples = validation.shards.manifest.samples
    pixels = sum(samples[index].height * samples[index].width for index in validation.images)
    return max(validation.pixels.values()) / pixels / len(validation.shown)


def verdicts(rows: list[dict], levels: Mapping[str, float]) -> list[Verdict]:
    """Final loss and mIoU against answers that do not look at the image, and against the network before training.

    Good is a loss a tenth below that of the best constant answer, and a val/miou twice that of the best constant answer
    and above that before the first step.
    """
    said = []
    values = series(rows, "loss")[1][-TAIL:]
    if len(values):
        mean, level = float(values.mean()), levels["loss"]
        text = f"loss ended at {mean:.3f} nats; the best constant answer costs {level:.3f}"
        said.append(Verdict(good=mean < (1 - MARGIN) * level, text=text))
    steps, scores = series(rows, "val/miou")
    if len(scores):
        final, constant = scores[-1], levels["val/miou"]
        text = f"val/miou is {final:.1%} at the end; the best single class at every pixel scores {constant:.1%}"
        said.append(Verdict(good=bool(final > 2 * constant), text=text))
        if len(scores) > 1 and steps[0] == 0:
            text = f"val/miou is {final:.1%} after {steps[-1]:.0f} steps, {scores[0]:.1%} before the first"
            said.append(Verdict(good=bool(final > scores[0]), text=text))
    return said


def _best(run: RunDir, rows: list[dict], validation: LabelValidation | None) -> str:
    if validation is None:
        return "none chosen, as validate.fraction is 0: the last weights are all there is"
    return best_weights(run, rows, f"{len(validation.images):,} images that were not trained on")


def _pictures(run: RunDir, rows: list[dict], validation: LabelValidation) -> list[Picture]:
    shown = (
        "validation images spread over the set, not chosen by hand and the same at every validation. Novel classes and "
        "those held out are background."
    )
    return [*_classes(run.report, rows, validation), *last_picture(run, shown)]


def _classes(folder: Path, rows: Sequence[dict], validation: LabelValidation) -> list[Picture]:
    """The classes' scores of the last validation."""
    measured = [row for row in rows if "val/miou" in row]
    if not measured:
        return []
    last, samples = measured[-1], validation.shards.manifest.samples
    ids = {name: class_id for class_id, name in validation.shards.manifest.classes.items()}
    bars = [
        Bar(
            name=name,
            values=(100 * last[f"val/iou/{name}"],),
            episodes=sum(ids[name] in samples[index].classes for index in validation.images),
        )
        for name in validation.shown
    ]
    class_bars(bars, folder / "classes.png", mean=100 * last["val/miou"], unit="images")
    absent = [name for name in validation.names if name not in validation.shown]
    caption = f"The last validation, step {last['step']:,}; in brackets how many validation images show the class."
    if absent:
        caption += f" No validation image shows {', '.join(absent)}: not in the mean."
    return [Picture(title="Classes", file="classes.png", caption=caption)]
