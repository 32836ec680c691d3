"""Figures of a pretraining: nearest neighbours, principal components of dense features, augmented views."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from fss.data.augment import Backend
from fss.data.batch import ViewSpec
from fss.data.views import CHOICE, ViewMaker, draw_patch, superpixels
from fss.report.figure_style import FAINT, INK, RIGHT, WRONG, save, show
from shards.codec import decode_image, image_bytes
from shards.format import ShardError
from shards.read import ShardSet


def neighbours(
    images: Callable[[int], np.ndarray], names: list[str], features: Tensor, path: Path, *, queries: int = 6, k: int = 6
) -> None:
    """Draw rows of a crop and the `k` crops with the nearest features, framed by whether the class is the same.

    The first crop of each of `queries` classes is a query; these are spread evenly over the sorted class names.

    Args:
        images: index -> uint8 RGB [S, S, 3].
        names: [N] class name of each crop.
        features: [N, D], any scale.
    """
    features = F.normalize(features.float().cpu(), dim=1)
    classes = sorted(set(names))
    chosen = [classes[i * len(classes) // queries] for i in range(queries)] if len(classes) > queries else classes
    k = min(k, len(names) - 1)
    figure = Figure(figsize=(1.32 * (k + 1) + 0.2, 1.62 * len(chosen) + 0.3), layout="constrained")
    grid = figure.subplots(len(chosen), k + 1, squeeze=False)
    for name, line in zip(chosen, grid, strict=True):
        query = names.index(name)
        similarity = features @ features[query]  # [N]
        similarity[query] = -2  # below any cosine: a crop is no neighbour of itself
        show(line[0], images(query), title=name, frame=INK)
        for axes, index in zip(line[1:], similarity.topk(k).indices.tolist(), strict=True):
            same = names[index] == name
            show(axes, images(index), title=names[index], frame=RIGHT if same else WRONG)
            mark = "\N{CHECK MARK}" if same else "\N{BALLOT X}"  # not by colour alone
            axes.set_xlabel(f"{mark} {similarity[index]:.2f}", fontsize=8, color=RIGHT if same else WRONG, labelpad=3)
    grid[0][0].set_xlabel("query", fontsize=8, color=FAINT, labelpad=3)
    save(figure, path)


def pca(images: Tensor, maps: Mapping[str, Tensor], path: Path) -> None:
    """Draw photographs above their dense features: the first three principal components as red, green and blue.

    Args:
        images: [N, 3, H, W] uint8.
        maps: row title -> dense features [N, C, h, w]; each row has its own PCA over all images.
    """
    size = images.shape[-2:]
    figure = Figure(figsize=(1.45 * len(images) + 0.3, 1.45 * (len(maps) + 1) + 0.1))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(len(maps) + 1, len(images), squeeze=False)
    for axes, image in zip(grid[0], images, strict=True):
        show(axes, image.permute(1, 2, 0).numpy())
    for line, (_, dense) in zip(grid[1:], maps.items(), strict=True):
        colours = F.interpolate(principal_colours(dense), size=size, mode="bilinear")  # [N, 3, H, W]
        for axes, colour in zip(line, colours, strict=True):
            show(axes, colour.permute(1, 2, 0).numpy())
    for line, title in zip(grid, ["image", *maps], strict=True):
        line[0].set_ylabel(title, fontsize=8, color=INK)
    save(figure, path)


def principal_colours(dense: Tensor) -> Tensor:
    """[N, C, h, w] -> [N, 3, h, w] in [0, 1]: the first three principal components over all N * h * w cells.

    Cells are L2-normalised, so that no bright corner dominates the first component. The mean over the images at their
    position is subtracted, because zero padding marks the borders of every map alike and would dominate all three. The
    colour of a cell is its rank among all cells, because one outlier would otherwise leave the rest dark. Signs follow
    the loading of largest magnitude, so that the picture is reproducible.
    """
    n, c, h, w = dense.shape
    cells = F.normalize(dense.float().cpu(), dim=1)  # [N, C, h, w]
    cells = (cells - cells.mean(dim=0)).permute(0, 2, 3, 1).reshape(-1, c)  # [N*h*w, C]
    directions = torch.linalg.svd(cells, full_matrices=False).Vh[:3]  # [3, C]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))  # [3, 1]
    parts = cells @ (directions * largest.sign()).T  # [N*h*w, 3]
    colours = parts.argsort(dim=0).argsort(dim=0) / max(len(parts) - 1, 1)  # [N*h*w, 3]
    return colours.reshape(n, h, w, 3).permute(0, 3, 1, 2)


def views(shards: ShardSet, indices: Sequence[int], spec: ViewSpec, path: Path, *, backend: Backend, seed: int) -> None:
    """Draw the input of the network in epoch 0 of a run: the image, its two views, and the local input.

    Superpixels are drawn over the image, and for the 'patch' reading the square of the patch; for 'region' the cells of
    each region are drawn over the views, one colour a region. Samples that cannot be read are left out.

    indices: of the samples. seed: of the run.
    """
    make = ViewMaker(spec, backend, seed)
    columns: dict[str, list[np.ndarray]] = {}
    for index in indices:
        try:
            members = shards.read(index)
            row = make(members, 0, index)
        except ShardError:  # training replaces it, too
            continue
        pictures = {"image": _with_superpixels(members, spec, seed, index)}
        for side in ("query", "key"):
            view = row[side].transpose(1, 2, 0)  # [S, S, 3]
            pictures[f"{side} view"] = _with_regions(view, row[f"region_{side}"]) if spec.local == "region" else view
        if spec.local == "patch":
            pictures |= {f"{side} patch": row[f"patch_{side}"].transpose(1, 2, 0) for side in ("query", "key")}
        for title, picture in pictures.items():
            columns.setdefault(title, []).append(picture)
    lines = len(columns["image"])
    figure = Figure(figsize=(1.7 * len(columns), 1.5 * lines + 0.25), layout="constrained")
    grid = figure.subplots(lines, len(columns), squeeze=False)
    for column, (title, column_pictures) in enumerate(columns.items()):
        for line, picture in enumerate(column_pictures):
            show(grid[line][column], picture, title=title if line == 0 else "")
    save(figure, path)


def _with_superpixels(members: dict[str, bytes], spec: ViewSpec, seed: int, index: int) -> np.ndarray:
    """The image [H, W, 3] with the boundaries of its superpixels, and the patch that epoch 0 draws from it."""
    from skimage.segmentation import mark_boundaries  # takes half a second to import

    image = decode_image(image_bytes(members))
    if spec.local == "none":
        return image
    labels = superpixels(members, spec.superpixels, image.shape[:2])  # [H / 2, W / 2]
    height, width = image.shape[:2]
    full = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    outlined = (mark_boundaries(image, full, color=(1, 1, 0), mode="inner") * 255).astype(np.uint8)
    if spec.local == "patch":
        box = draw_patch(np.random.default_rng([CHOICE, seed, 0, index]), labels, (height, width))
        corners = (box.left, box.top), (box.left + box.width - 1, box.top + box.height - 1)
        for colour, thickness in (((255, 255, 255), 5), ((213, 94, 0), 3)):  # WRONG's orange inside a white edge
            cv2.rectangle(outlined, *corners, colour, max(1, thickness * max(height, width) // 400))
    return outlined


def _with_regions(view: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The view [S, S, 3], each cell in the colour of the region of [R, h, w] that has the most weight there."""
    size = len(view)
    palette = np.array([hsv_to_rgb((i * 0.618 % 1, 0.9, 1)) * 255 for i in range(len(weights))])  # [R, 3]
    owner = cv2.resize(weights.argmax(0).astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)  # [S, S]
    covered = cv2.resize(weights.max(0), (size, size), interpolation=cv2.INTER_NEAREST)[..., None] > 0  # [S, S, 1]
    return np.where(covered, 0.5 * view + 0.5 * palette[owner], view).astype(np.uint8)
