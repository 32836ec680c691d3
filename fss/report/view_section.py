"""The page of a contrastive pretraining: verdicts on losses and kNN accuracy, neighbours, features, views."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fss.collectives import SingleProcess
from fss.data.batch import ViewSpec
from fss.data.object_crops import ObjectCrops
from fss.data.view_dataset import ViewDataConfig
from fss.methods.base import ViewMethod
from fss.report import feature_figures as pictures
from fss.report.curves import series
from fss.report.page import Picture, ReportSection, Verdict
from fss.tracking.run_dir import RunDir
from fss.train.tasks.view_task import ViewTask
from fss.train.validation.knn_probe import embed
from shards.codec import decode_image, image_bytes
from shards.format import ShardError
from shards.read import ShardSet
from shards.superpixels import picture as superpixel_picture

NEIGHBOUR_CROPS = 1000  # held-out crops among which neighbours are searched
COLLAPSED = 0.2  # spread below which all embeddings are nearly one vector; chosen by us
TAIL = 10  # logged steps over which a final value is averaged


def report_section(run: RunDir, method: ViewMethod, task: ViewTask) -> ReportSection:
    """Judge the logged rows of `run`, and draw pictures of `method` as it is now. For one rank."""
    folder, rows, shards, crops = run.report, run.rows(), task.shards, task.crops
    data, seed, spec = task.job.data, task.job.run.seed, method.batch_spec
    assert isinstance(spec, ViewSpec)  # the task checked the kind of the method
    chance_levels = method.chance_levels()
    drawn = list(_neighbours(folder, method, crops)) if crops is not None else []
    drawn += [_dense(folder, method, shards), *view_pictures(folder, spec, shards, data, seed)]
    return ReportSection(
        verdicts=verdicts(rows, chance_levels),
        baselines=chance_levels,
        baseline_name="guessing",
        baseline_description="the value that guessing gives",
        pictures=drawn,
    )


def verdicts(rows: Sequence[dict], chance_levels: Mapping[str, float]) -> list[Verdict]:
    """Judge the final losses, hit rates and kNN accuracy against guessing, and against the network before training.

    Good is a loss a nat below guessing, a hit rate 20 times that of guessing, and a kNN accuracy two standard errors
    above both. A contrast whose queue still contains random keys has no result.
    """
    judged = []
    for name, level in chance_levels.items():
        values = series(rows, name)[1][-TAIL:]
        if name == "loss" or not len(values):
            continue
        mean, contrast = float(values.mean()), name.split("/")[1]
        filled = (series(rows, f"fill/{contrast}")[1][-1:] >= 1).all()
        unfilled = "" if filled else "; its queue was never full, so this is not a result yet"
        if name.startswith("loss/"):
            text = f"{name} ended at {mean:.2f} nats, guessing costs {level:.2f}{unfilled}"
            judged.append(Verdict(good=bool(filled) and mean < level - 1, text=text))
        else:
            times = f"{mean / level:.0f} times as often as by guessing"
            text = f"{name}: the positive is ranked first for {mean:.2%}, {times}{unfilled}"
            spread = series(rows, f"spread/{contrast}")[1][
                -TAIL:
            ]  # after a collapse, a hit tells only the age of a key
            apart = not len(spread) or spread.mean() > COLLAPSED
            judged.append(Verdict(good=bool(filled and apart and mean > 20 * level), text=text))
    for name in sorted({name for row in rows for name in row if name.startswith("spread/")}):
        mean = float(series(rows, name)[1][-TAIL:].mean())
        text = f"{name} is {mean:.2f}; it is 1 if all directions are used equally, 0 if every image has one vector"
        collapsed = "; the embeddings have collapsed, and the hit rate tells the age of a key, not its image"
        judged.append(Verdict(good=mean > COLLAPSED, text=text if mean > COLLAPSED else text + collapsed))
    steps, accuracy = series(rows, "knn/top1")
    if len(accuracy):
        final, guessing = accuracy[-1], series(rows, "knn/chance_level")[1][-1]
        held_out = max(series(rows, "knn/images")[1][-1] / 2, 1)  # about half of the crops
        error = math.sqrt(final * (1 - final) / held_out)
        text = (
            f"kNN finds the class of {final:.1%} (± {error:.1%}) of held-out crops, a constant prediction that of "
            f"{guessing:.1%}"
        )
        judged.append(Verdict(good=bool(final - guessing > 2 * error), text=text))
        if len(steps) > 1 and steps[0] == 0:
            before = accuracy[0]
            both = math.sqrt(error**2 + before * (1 - before) / held_out)
            text = f"kNN is right for {final:.1%} after {steps[-1]:.0f} steps, for {before:.1%} before the first"
            judged.append(Verdict(good=bool(final - before > 2 * both), text=text))
    return judged


def _neighbours(folder: Path, method: ViewMethod, crops: ObjectCrops) -> Iterator[Picture]:
    held_out = crops.held_out(NEIGHBOUR_CROPS)
    features, readable = embed(method, held_out, SingleProcess(), next(method.trainable.parameters()).device)
    indices = readable.nonzero()[:, 0].tolist()
    names = [held_out.names[held_out.rows[i].label] for i in indices]
    if len(names) > 1:
        pictures.neighbours(lambda i: held_out.load(indices[i]), names, features[readable], folder / "neighbours.png")
        yield Picture(
            title="Nearest neighbours",
            file="neighbours.png",
            wide=True,
            caption="Left: a held-out crop, one of each of up to six classes, not chosen by hand. Right: the crops "
            "with the nearest features, their cosine similarity below. Green with a tick: the same class. Orange "
            "with a cross: another class.",
        )


def _dense(folder: Path, method: ViewMethod, shards: ShardSet, count: int = 8) -> Picture:
    size = 64 * max(4, round(2 * method.batch_spec.size / 64))  # twice the view: 14 x 14 cells at 224
    photographs = torch.from_numpy(np.stack([_square(image, size) for image in _some_images(shards, count)]))
    photographs = photographs.permute(0, 3, 1, 2).contiguous()  # [N, 3, size, size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = type(method)(method.config)

    def dense(extractor: ViewMethod) -> Tensor:
        device = next(extractor.trainable.parameters()).device
        return torch.cat([extractor.dense(image[None].to(device)).cpu() for image in photographs])  # [N, C, h, w]

    pictures.pca(photographs, {"this network": dense(method), "untrained": dense(untrained)}, folder / "dense.png")
    return Picture(
        title="Dense features",
        file="dense.png",
        wide=True,
        caption="The first three principal components of the last feature map over all images above, as red, green and "
        "blue. Equal colours mean equal features, border effects removed; below, the same network before training.",
    )


def view_pictures(folder: Path, spec: ViewSpec, shards: ShardSet, data: ViewDataConfig, seed: int) -> Iterator[Picture]:
    """Draw the input of the network, and with a local contrast the superpixels, into `folder`. seed: of the run."""
    indices = [index for index, _ in _readable(shards, 4)]
    pictures.views(shards, indices, spec, folder / "views.png", backend=data.backend, seed=seed)
    local = {
        "none": "",
        "patch": f" The square is the {spec.superpixels} patch that both patch views show.",
        "region": " Cells of one colour are pooled to one vector; a colour marks the same superpixel in both views.",
    }[spec.local]
    yield Picture(
        title="What the network sees",
        file="views.png",
        caption=f"Images of the data set and their augmented views in the first epoch.{local}",
    )
    if spec.local != "none":
        picture = superpixel_picture(_some_images(shards, 3))
        cv2.imwrite(str(folder / "superpixels.png"), picture[..., ::-1])
        yield Picture(
            title="Superpixels",
            file="superpixels.png",
            caption="The image, Felzenszwalb's superpixels and SLIC's, as in QGNet, Fig. 4.",
        )


def _some_images(shards: ShardSet, count: int) -> list[np.ndarray]:
    return [image for _, image in _readable(shards, count)]


def _readable(shards: ShardSet, count: int) -> list[tuple[int, np.ndarray]]:
    """(index, RGB image [H, W, 3]) of at most `count` samples spread over the set, without unreadable ones."""
    readable = []
    for i in range(min(count, len(shards))):
        index = i * len(shards) // count if len(shards) > count else i
        try:
            readable.append((index, decode_image(image_bytes(shards.read(index)))))
        except ShardError:
            continue
    return readable


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of an image [H, W, 3], resized to [size, size, 3]."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=interpolation)
