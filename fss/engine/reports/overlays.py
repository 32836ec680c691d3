"""Pictures of episodes: supports with their masks, query, truth, prediction, and the maps between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn.functional import interpolate

from fss.data.episodes import Episode
from fss.data.transforms import Frame, fit_image, read_labelled
from fss.engine.evaluation.measure import Scoring, evaluating
from fss.engine.evaluation.metrics import counts, known, ratio
from fss.engine.reports import paint
from fss.engine.reports.pictures import INK, save, show
from fss.methods.base import Method
from shards.read import ShardSet

# Okabe and Ito's again, chosen to differ in lightness too: told apart with every kind of colour vision.
HIT, MISS, FALSE_ALARM, UNCOUNTED = "#56B4E9", "#F0E442", "#D55E00", "#999999"
INCHES = 1.9  # of a column


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One episode to show. Images uint8 RGB [H, W, 3]; masks uint8 [H, W]: 1 the class, 0 other, 255 not counted."""

    name: str
    """Of the class."""
    score: str
    supports: Sequence[tuple[np.ndarray, np.ndarray]]
    """Image and mask of each shot."""
    query: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name -> float [h, w] in 0..1, over the whole query."""


def look(method: Method, shards: ShardSet, episode: Episode, how: Scoring, device: torch.device) -> Shown:
    """What `method` makes of an episode. The intersection over union is scored as `how` says; what is drawn is the
    prediction at the photograph's own size.

    Raises ShardError where a sample cannot be read.
    """

    def fitted(image: np.ndarray) -> tuple[Tensor, Frame]:
        square, frame = fit_image(image, how.size, how.resize)  # [3, S, S]
        return square[None].to(device), frame

    query, truth = read_labelled(shards, episode.query, episode.class_id, how.labels)
    supports = [read_labelled(shards, index, episode.class_id, how.labels) for index in episode.supports]
    with evaluating(method), torch.inference_mode():
        descriptions = []
        for image, mask in supports:
            square, frame = fitted(image)
            seen = torch.from_numpy(frame.mask(mask))[None].to(device)
            descriptions.append(method.describe(method.encode(square), seen))
        square, frame = fitted(query)
        features = method.encode(square)
        whole = features | method.encode_query(square) if method.encodes_queries else features
        logits = method.predict(whole, descriptions)  # [1, 2, S, S]
        maps = {name: _over_image(found, frame) for name, found in method.maps(features, descriptions).items()}
    scored = frame.truth(truth, how.resolution)
    scored = scored if how.ignore_255 else known(scored)
    iou = ratio(counts(frame.restore(logits, how.resolution), scored)[1])
    return Shown(
        name=shards.manifest.classes[episode.class_id],
        score=f"IoU {100 * iou:.1f} %",
        supports=supports,
        query=query,
        truth=truth,
        prediction=frame.restore(logits, "original"),
        maps=maps,
    )


def _over_image(found: Tensor, frame: Frame) -> np.ndarray:
    """The part of a map [h, w] over the method's square input that lies over the image."""
    square = interpolate(found[None, None].float(), (frame.size, frame.size), mode="bilinear", align_corners=True)
    return square[0, 0, : frame.valid_h, : frame.valid_w].cpu().numpy()


def episodes(rows: Sequence[Shown], path: Path) -> None:
    """One row an episode; the prediction says where it is right (hit), where it lacks and where it has too much."""
    names = list(dict.fromkeys(name for row in rows for name in row.maps))
    shots = max(len(row.supports) for row in rows)
    header = ["support" if shots == 1 else f"{shots} supports", "query", "truth", "prediction", *names]
    cells = [_cells(row, names) for row in rows]
    # In widths of a column; a portrait is shown narrower rather than in a row of twice the height.
    widths = [1.0 if shots == 1 else 1.5, *[1.0] * (len(header) - 1)]
    heights = [
        min(max(c.shape[0] / c.shape[1] * width for c, width in zip(line, widths, strict=True)), 1) for line in cells
    ]
    figure = Figure(figsize=(INCHES * sum(widths), INCHES * sum(heights) + 0.3 * len(rows) + 0.45))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    grid = figure.subplots(len(rows), len(header), squeeze=False, width_ratios=widths, height_ratios=heights)
    for line, (row, pictures) in enumerate(zip(rows, cells, strict=True)):
        for axes, picture, title in zip(grid[line], pictures, header, strict=True):
            show(axes, picture)
            if line == 0:
                axes.set_title(title, fontsize=8.5, color=INK, pad=4)
        grid[line][0].set_xlabel(row.name, fontsize=8.5, color=INK, labelpad=3)
        grid[line][3].set_xlabel(row.score, fontsize=8.5, color=INK, labelpad=3)
    colours = {"hit": HIT, "missed": MISS, "false alarm": FALSE_ALARM}
    if any((row.truth == 255).any() for row in rows):
        colours["not counted"] = UNCOUNTED
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower right", ncols=4, fontsize=8, frameon=False, labelcolor=INK)
    save(figure, path)


def row(shown: Shown) -> dict[str, str | np.ndarray]:
    """What `episodes` draws of one without its maps, by column: words, and pictures uint8 RGB [h, w, 3]."""
    pictures = dict(zip(("supports", "query", "truth", "prediction"), _cells(shown, []), strict=True))
    return {"class": shown.name, "score": shown.score, **pictures}


def _cells(row: Shown, names: Sequence[str]) -> list[np.ndarray]:
    """The pictures of a row, uint8 [h, w, 3] each; a map that the episode does not have is left white."""
    query, truth, prediction = paint.small(row.query), paint.small_mask(row.truth), paint.small_mask(row.prediction)
    grey = np.repeat(cv2.cvtColor(query, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    unknown = truth == 255
    judged = paint.tint(
        grey,
        {
            HIT: (truth == 1) & (prediction == 1),
            MISS: (truth == 1) & (prediction == 0),
            FALSE_ALARM: (truth == 0) & (prediction == 1),
            UNCOUNTED: unknown,
        },
    )
    there = paint.outlined(paint.tint(grey, {HIT: truth == 1, UNCOUNTED: unknown}), truth == 1, "#ffffff")
    heat = [paint.heat(row.maps[name], truth == 1) if name in row.maps else np.full_like(query, 255) for name in names]
    return [paint.together([paint.support(*pair) for pair in row.supports]), query, there, judged, *heat]
