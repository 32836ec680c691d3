"""The page of a training on episodes: verdicts against constant predictions, and the last validation."""

import math
from collections.abc import Mapping, Sequence

from fss.data.batch import EpisodeSpec
from fss.data.dataset import DataConfig
from fss.data.episode_dataset import EpisodeDataset, EpisodeSources
from fss.methods.base import EpisodeMethod
from fss.report.curves import series
from fss.report.page import Picture, ReportSection, Verdict
from fss.report.validation_parts import best_weights, last_picture
from fss.tracking.run_dir import RunDir
from fss.train.tasks.episode_task import EpisodeTask
from fss.train.validation.episode_validation import EXAMPLES, EpisodeValidation

COIN = math.log(2)  # nats: a two-class loss at probability 1/2
MARGIN = 0.1  # of the constant prediction's loss: both are means over some dozen episodes, off by a few per cent
SAMPLE = 96  # training episodes from which the share of object pixels is computed
TAIL = 10  # logged steps over which a final loss is averaged


def report_section(run: RunDir, method: EpisodeMethod, task: EpisodeTask) -> ReportSection:
    """Judge the logged rows of `run`, and copy its last validation picture beside the page. For one rank."""
    data, validation, config, seed = task.data, task.validation, task.job.data, task.job.run.seed
    rows, spec = run.rows(), method.batch_spec
    assert isinstance(spec, EpisodeSpec)  # the task checked the kind of the method
    share = object_share(spec, data, config, seed)
    baselines = constant_losses(method.chance_levels(), share) | {"iou": share}
    if validation:
        baselines |= constant_scores(validation)
    return ReportSection(
        verdicts=verdicts(
            rows, method.chance_levels(), baselines, share, len(validation.episodes) if validation else 0
        ),
        baselines=baselines,
        baseline_name="constant prediction",
        baseline_description="the best prediction that ignores the image, for a loss the same probability at every "
        "pixel, for an IoU the class everywhere, for FB-IoU the class everywhere or nowhere",
        pictures=_last_validation(run, validation) if validation else [],
        summary={"best weights": _best(run, rows, validation)},
    )


def object_share(spec: EpisodeSpec, data: EpisodeSources, config: DataConfig, seed: int) -> float:
    """Share of the class among the known pixels of the augmented queries of the first training episodes."""
    dataset = EpisodeDataset(spec, data, config, seed)
    objects = known = 0
    for start in range(0, SAMPLE, 8):
        mask = dataset.batch(start, start + 8).query_mask  # [8, S, S]
        objects += int((mask == 1).sum())
        known += int((mask != 255).sum())
    return objects / max(known, 1)


def constant_losses(chance_levels: Mapping[str, float], share: float) -> dict[str, float]:
    """Key of a loss -> the loss of predicting probability `share` at every pixel, nats.

    For a two-class loss, for which guessing costs ln 2, it is the entropy of the share, the least of any prediction
    that ignores the image: predicting background everywhere costs far less than ln 2. Other losses keep their level of
    guessing.
    """
    entropy = -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
    return {name: entropy if math.isclose(level, COIN) else level for name, level in chance_levels.items()}


def constant_scores(validation: EpisodeValidation) -> dict[str, float]:
    """val/miou and val/fb_iou of the better of two predictions, the class at every pixel or at none; fractions.

    Nearly exact: areas are those in the manifest, and unknown pixels count as part of the image.
    """
    samples = validation.shards.manifest.samples
    areas = {class_id: [0, 0] for class_id in validation.classes}  # pixels of the class, and of the images
    for episode in validation.episodes:
        query = samples[episode.query]
        areas[episode.class_id][0] += query.classes[episode.class_id]
        areas[episode.class_id][1] += query.height * query.width
    everywhere = math.fsum(area / max(pixels, 1) for area, pixels in areas.values()) / len(areas)
    share = sum(area for area, _ in areas.values()) / sum(pixels for _, pixels in areas.values())
    return {"val/miou": everywhere, "val/fb_iou": max(share, 1 - share) / 2}


def verdicts(
    rows: Sequence[dict],
    chance_levels: Mapping[str, float],
    baselines: Mapping[str, float],
    share: float,
    episodes: int,
) -> list[Verdict]:
    """Judge the final losses and mIoU against constant predictions, and against the method before training.

    Good is a loss a tenth below that of the best constant prediction, and a val/miou two standard errors above both.
    The standard error is that of a mean of `episodes` values of 0 or 1, an upper bound. share: see `object_share`.
    """
    judged = []
    for name in chance_levels:
        values = series(rows, name)[1][-TAIL:]
        if len(values):
            mean = float(values.mean())
            text = (
                f"{name} ended at {mean:.3f} nats; the best constant prediction, {share:.1%} at every pixel, costs "
                f"{baselines[name]:.3f}, guessing {chance_levels[name]:.3f}"
            )
            judged.append(Verdict(good=mean < (1 - MARGIN) * baselines[name], text=text))
    steps, scores = series(rows, "val/miou")
    if len(scores):
        final, constant = scores[-1], baselines["val/miou"]
        error = _error(final, episodes)
        text = f"val/miou is {final:.1%} (± {error:.1%}) at the end; the class at every pixel scores {constant:.1%}"
        judged.append(Verdict(good=bool(final - constant > 2 * error), text=text))
        if len(scores) > 1 and steps[0] == 0:
            both = math.hypot(error, _error(scores[0], episodes))
            text = f"val/miou is {final:.1%} after {steps[-1]:.0f} steps, {scores[0]:.1%} before the first"
            judged.append(Verdict(good=bool(final - scores[0] > 2 * both), text=text))
    return judged


def _error(score: float, episodes: int) -> float:
    return math.sqrt(score * (1 - score) / max(episodes, 1))


def _best(run: RunDir, rows: Sequence[dict], validation: EpisodeValidation | None) -> str:
    if validation is None:
        return "none chosen, as validate.split is none: only the last weights exist"
    names = ", ".join(validation.shards.manifest.classes[class_id] for class_id in validation.classes)
    kind = "novel classes, those of the test" if validation.config.split == "novel" else "base classes not learned from"
    return best_weights(run, rows, f"{len(validation.episodes):,} episodes of {kind}: {names}")


def _last_validation(run: RunDir, validation: EpisodeValidation) -> list[Picture]:
    return last_picture(
        run,
        f"the first {min(EXAMPLES, len(validation.episodes))} validation episodes, not chosen by hand and the same at "
        "every validation. Supports are dimmed outside of the mask. Region maps, if any, are dark at 0 and "
        "bright at 1, under the outline of the truth.",
    )
