"""What the page of a run on episodes tells: losses and validation beside those of constant answers, a validation."""

import math
from collections.abc import Mapping

from fss.data.batch import EpisodeSpec
from fss.data.dataset import DataConfig
from fss.data.episode_dataset import EpisodeDataset, EpisodeSources
from fss.methods.base import EpisodeMethod
from fss.report.curves import series
from fss.report.page import Picture, ReportSection, Verdict
from fss.report.validation_section import best_weights, last_picture
from fss.tracking.run_dir import RunDir
from fss.train.tasks.episode_task import EpisodeTask
from fss.train.validation.episode_validation import SHOWN, Validation

COIN = math.log(2)
MARGIN = 0.1  # of the constant answer's loss: taken over some dozen episodes, both are off by a few percent
SAMPLE = 96  # training episodes of which the share of object pixels is taken
TAIL = 10  # logged steps over which a final loss is averaged


def report_section(run: RunDir, method: EpisodeMethod, task: EpisodeTask) -> ReportSection:
    """Judge the logged rows of `run`, and copy its last validation picture beside the page. For one rank."""
    data, validation, config, seed = task.data, task.validation, task.job.data, task.job.run.seed
    rows = run.rows()
    share = object_share(method.batch_spec, data, config, seed)
    levels = constant_losses(method.chance_levels(), share) | {"iou": share}
    if validation:
        levels |= constant_scores(validation)
    return ReportSection(
        verdicts=verdicts(rows, method.chance_levels(), levels, share, len(validation.episodes) if validation else 0),
        levels=levels,
        guess="constant answer",
        guess_explained="the best that an answer without a look at the image gives, of a loss the same probability for "
        "every pixel, of an IoU the class everywhere, of FB-IoU the class everywhere or nowhere",
        pictures=_last_validation(run, validation) if validation else [],
        ran={"best weights": _best(run, rows, validation)},
    )


def object_share(spec: EpisodeSpec, data: EpisodeSources, config: DataConfig, seed: int) -> float:
    """Pixels of the class among the known ones, in the augmented queries of the first training episodes of a run."""
    dataset = EpisodeDataset(spec, data, config, seed)
    found = known = 0
    for start in range(0, SAMPLE, 8):
        mask = dataset.batch(start, start + 8).query_mask  # [8, S, S]
        found += int((mask == 1).sum())
        known += int((mask != 255).sum())
    return found / max(known, 1)


def constant_losses(chance: Mapping[str, float], share: float) -> dict[str, float]:
    """What every two-class loss, one whose chance is ln 2, comes to if each pixel gets the probability `share`, nats.

    That is the entropy of the share, the least of any answer that does not look at the image: calling everything
    background already takes a loss far below ln 2. A loss of another chance keeps it.
    """
    entropy = -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
    return {name: entropy if math.isclose(level, COIN) else level for name, level in chance.items()}


def constant_scores(validation: Validation) -> dict[str, float]:
    """val/miou and val/fb_iou of the better of two answers: the class at every pixel, or at none.

    As good as exact: areas are those in the manifest, pixels that are not counted included in the image.
    """
    samples = validation.shards.manifest.samples
    areas = {class_id: [0, 0] for class_id in validation.classes}  # of the class, of the images
    for episode in validation.episodes:
        query = samples[episode.query]
        areas[episode.class_id][0] += query.classes[episode.class_id]
        areas[episode.class_id][1] += query.height * query.width
    everywhere = math.fsum(found / max(pixels, 1) for found, pixels in areas.values()) / len(areas)
    share = sum(found for found, _ in areas.values()) / sum(pixels for _, pixels in areas.values())
    return {"val/miou": everywhere, "val/fb_iou": max(share, 1 - share) / 2}


def verdicts(
    rows: list[dict], chance: Mapping[str, float], levels: Mapping[str, float], share: float, episodes: int
) -> list[Verdict]:
    """Final losses and mIoU against answers that do not look at the image, and against the method before training.

    Good is a loss a tenth below that of the best constant answer, and a val/miou two standard errors above both. The
    standard error is that of a mean of `episodes` values between 0 and 1, which is about the most it can be.
    """
    said = []
    for name in chance:
        values = series(rows, name)[1][-TAIL:]
        if len(values):
            mean = float(values.mean())
            text = (
                f"{name} ended at {mean:.3f} nats; the best constant answer, {share:.1%} for every pixel, costs "
                f"{levels[name]:.3f}, a coin {chance[name]:.3f}"
            )
            said.append(Verdict(good=mean < (1 - MARGIN) * levels[name], text=text))
    steps, scores = series(rows, "val/miou")
    if len(scores):
        final, constant = scores[-1], levels["val/miou"]
        error = _error(final, episodes)
        text = f"val/miou is {final:.1%} (± {error:.1%}) at the end; the class at every pixel scores {constant:.1%}"
        said.append(Verdict(good=bool(final - constant > 2 * error), text=text))
        if len(scores) > 1 and steps[0] == 0:
            both = math.hypot(error, _error(scores[0], episodes))
            text = f"val/miou is {final:.1%} after {steps[-1]:.0f} steps, {scores[0]:.1%} before the first"
            said.append(Verdict(good=bool(final - scores[0] > 2 * both), text=text))
    return said


def _error(score: float, episodes: int) -> float:
    return math.sqrt(score * (1 - score) / max(episodes, 1))


def _best(run: RunDir, rows: list[dict], validation: Validation | None) -> str:
    if validation is None:
        return "none chosen, as validate.split is none: the last weights are all there is"
    names = ", ".join(validation.shards.manifest.classes[class_id] for class_id in validation.classes)
    kind = "novel classes, those of the test" if validation.config.split == "novel" else "base classes not learned from"
    return best_weights(run, rows, f"{len(validation.episodes):,} episodes of {kind}: {names}")


def _last_validation(run: RunDir, validation: Validation) -> list[Picture]:
    return last_picture(
        run,
        f"the first {min(SHOWN, len(validation.episodes))} validation episodes, not chosen by hand and the same at "
        "every validation. Supports are dimmed outside of the mask. Region maps, if any, go from 0, dark, to 1, "
        "bright, under the outline of the truth.",
    )
