"""The page of a base learner's training: verdicts against constant predictions, the classes, the last validation."""

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
from fss.report.validation_parts import best_weights, last_picture
from fss.tracking.run_dir import RunDir
from fss.train.tasks.label_task import LabelTask
from fss.train.validation.label_validation import LabelValidation
from shards.format import IGNORE_LABEL

MARGIN = 0.1  # of the constant prediction's loss: both are means over some dozen images, off by a few per cent
SAMPLE = 96  # training images from which the shares of the classes are computed
TAIL = 10  # logged steps over which a final loss is averaged


def report_section(run: RunDir, method: LabelMethod, task: LabelTask) -> ReportSection:
    """Judge the logged rows of `run`, draw its classes, and copy its last validation picture. For one rank."""
    data, validation, config, seed = task.data, task.validation, task.job.data, task.job.run.seed
    rows, spec = run.rows(), method.batch_spec
    assert isinstance(spec, LabelSpec)  # the task checked the kind of the method
    shares = label_shares(spec, data, config, seed)
    baselines = {"loss": entropy(shares), "accuracy": float(shares.max())}
    if validation:
        baselines["val/miou"] = constant_score(validation)
    return ReportSection(
        verdicts=verdicts(rows, baselines),
        baselines=baselines,
        baseline_name="constant prediction",
        baseline_description="the best prediction that ignores the image, for the loss the same probabilities at every "
        "pixel, for the rest one class everywhere",
        pictures=_pictures(run, rows, validation) if validation else [],
        summary={"best weights": _best(run, rows, validation)},
    )


def label_shares(spec: LabelSpec, data: LabelSources, config: DataConfig, seed: int) -> np.ndarray:
    """Share of each label among the known pixels of the first augmented training images, float64 [255]."""
    dataset = LabelDataset(spec, data, config, seed)
    counts = np.zeros(256, np.int64)
    for start in range(0, SAMPLE, 8):
        counts += np.bincount(dataset.batch(start, start + 8).labels.numpy().ravel(), minlength=256)
    known = counts[:IGNORE_LABEL]
    return known / max(known.sum(), 1)


def entropy(shares: np.ndarray) -> float:
    """Cross-entropy of predicting the shares [n] at every pixel, nats."""
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())


def constant_score(validation: LabelValidation) -> float:
    """val/miou of predicting the best single class at every pixel, a fraction.

    Nearly exact: areas are those in the manifest, and unknown pixels are taken as background.
    """
    samples = validation.shards.manifest.samples
    pixels = sum(samples[index].height * samples[index].width for index in validation.images)
    return max(validation.pixels.values()) / pixels / len(validation.present)


def verdicts(rows: Sequence[dict], baselines: Mapping[str, float]) -> list[Verdict]:
    """Judge the final loss and mIoU against constant predictions, and against the network before training.

    Good is a loss a tenth below that of the best constant prediction, and a val/miou twice that of the best constant
    prediction and above that before the first step.
    """
    judged = []
    values = series(rows, "loss")[1][-TAIL:]
    if len(values):
        mean, level = float(values.mean()), baselines["loss"]
        text = f"loss ended at {mean:.3f} nats; the best constant prediction costs {level:.3f}"
        judged.append(Verdict(good=mean < (1 - MARGIN) * level, text=text))
    steps, scores = series(rows, "val/miou")
    if len(scores):
        final, constant = scores[-1], baselines["val/miou"]
        text = f"val/miou is {final:.1%} at the end; the best single class at every pixel scores {constant:.1%}"
        judged.append(Verdict(good=bool(final > 2 * constant), text=text))
        if len(scores) > 1 and steps[0] == 0:
            text = f"val/miou is {final:.1%} after {steps[-1]:.0f} steps, {scores[0]:.1%} before the first"
            judged.append(Verdict(good=bool(final > scores[0]), text=text))
    return judged


def _best(run: RunDir, rows: Sequence[dict], validation: LabelValidation | None) -> str:
    if validation is None:
        return "none chosen, as validate.fraction is 0: only the last weights exist"
    return best_weights(run, rows, f"{len(validation.images):,} images that were not trained on")


def _pictures(run: RunDir, rows: Sequence[dict], validation: LabelValidation) -> list[Picture]:
    description = (
        "validation images spread over the set, not chosen by hand and the same at every validation. Novel classes and "
        "those held out are background."
    )
    return [*_classes(run.report, rows, validation), *last_picture(run, description)]


def _classes(folder: Path, rows: Sequence[dict], validation: LabelValidation) -> list[Picture]:
    """The scores of the classes at the last validation."""
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
        for name in validation.present
    ]
    class_bars(bars, folder / "classes.png", mean=100 * last["val/miou"], unit="images")
    absent = [name for name in validation.names if name not in validation.present]
    caption = (
        f"The last validation, step {last['step']:,}; in brackets the number of validation images that show the class."
    )
    if absent:
        caption += f" No validation image shows {', '.join(absent)}: not in the mean."
    return [Picture(title="Classes", file="classes.png", caption=caption)]
