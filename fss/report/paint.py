"""Photographs painted with masks: uint8 RGB [H, W, 3] in, downsampled uint8 RGB pictures out."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

OBJECT = "#E69F00"
SIDE = 300  # longer side of a picture, pixels
TINT = 0.62  # opacity of a colour over a photograph


def support(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A support [H, W, 3], downsampled: the object of its mask [H, W] is outlined, the rest darkened."""
    photograph, inside = downsample(image), downsample_mask(mask) == 1
    outside = (photograph * 0.55).astype(np.uint8)  # so that an object of any colour stands out
    return outlined(np.where(inside[..., None], photograph, outside), inside, OBJECT, width=2)


def together(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Several pictures [h, w, 3] as one, three a line, or two a line if there are two or four; one stays as it is."""
    if len(pictures) == 1:
        return pictures[0]
    columns, gap = 2 if len(pictures) in (2, 4) else 3, 6
    lines = []
    for start in range(0, len(pictures), columns):
        part = pictures[start : start + columns]
        line = np.full((max(len(picture) for picture in part), columns * (SIDE + gap) - gap, 3), 255, np.uint8)
        for column, picture in enumerate(part):
            left = column * (SIDE + gap) + (SIDE - picture.shape[1]) // 2
            line[: len(picture), left : left + picture.shape[1]] = picture
        lines += [line, np.full_like(line[:1].repeat(gap, 0), 255)]
    return np.concatenate(lines[:-1])


def heat(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """A map [h, w] in 0..1 as a picture [H, W, 3], 0 dark and 1 bright, with the outline of the object [H, W]."""
    from matplotlib import colormaps  # as below: takes long to import, and most callers draw no map

    height, width = inside.shape
    resized = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colours = (colormaps["viridis"](resized.clip(0, 1))[..., :3] * 255).astype(np.uint8)
    return outlined(colours, inside, "#ffffff")


def tint(image: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """The image [h, w, 3] with every mask [h, w] in its colour over it. masks: colour -> mask."""
    out = image.astype(np.float32)
    for colour, mask in masks.items():
        out[mask] = (1 - TINT) * out[mask] + TINT * np.array(_rgb(colour))
    return out.astype(np.uint8)


def outlined(image: np.ndarray, mask: np.ndarray, colour: str, width: int = 1) -> np.ndarray:
    """The image [h, w, 3] with the outline of a mask [h, w], a dark line beside the coloured one for contrast."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    painted = np.ascontiguousarray(image)
    for line, thickness in (("#000000", width + 2), (colour, width)):
        cv2.drawContours(painted, contours, -1, _rgb(line), thickness)
    return painted


def downsample(image: np.ndarray) -> np.ndarray:
    """The photograph [H, W, 3] with a longer side of `SIDE` pixels."""
    shrinks = max(image.shape[:2]) > SIDE
    return cv2.resize(image, _size(image), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def downsample_mask(mask: np.ndarray) -> np.ndarray:
    """The mask or label map [H, W] at the size of its downsampled photograph."""
    return cv2.resize(mask, _size(mask), interpolation=cv2.INTER_NEAREST_EXACT)


def _size(image: np.ndarray) -> tuple[int, int]:
    """(width, height) with a longer side of `SIDE`."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _rgb(colour: str) -> tuple[int, int, int]:
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return round(255 * red), round(255 * green), round(255 * blue)
