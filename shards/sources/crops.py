"""Part data sets are packed one sample per object: the photograph cut to the object's box, and the parts in it."""

import cv2
import numpy as np

from shards.codec import decode_image
from shards.format import ShardError
from shards.sources import Sample

Box = tuple[int, int, int, int]
"""left, top, right, bottom; the last two are outside."""


def cut(image: bytes, masks: dict[int, np.ndarray], box: Box, photograph: str) -> Sample:
    """Crop a photograph to `box`, as PNG, with the class masks (bool [H, W]) that have a pixel there.

    Small parts are painted last. photograph: its key, the same for all its crops.
    Raises ShardError if a mask has another size than the image, or none has a pixel in the box.
    """
    pixels = decode_image(image)  # [H, W, 3]
    for mask in masks.values():
        if mask.shape != pixels.shape[:2]:
            raise ShardError(f"its parts are drawn at {mask.shape} (height, width), the image is {pixels.shape[:2]}")
    left, top, right, bottom = box
    inside = slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))
    parts = {class_id: mask[inside] for class_id, mask in masks.items() if mask[inside].any()}
    if not parts:
        raise ShardError(f"none of its parts has a pixel in the box {box} (left, top, right, bottom)")
    return Sample(
        image=cv2.imencode(".png", pixels[inside][..., ::-1])[1].tobytes(),  # OpenCV expects BGR
        masks=parts,
        paint=sorted(parts, key=lambda class_id: -np.count_nonzero(parts[class_id])),
        crop_of=photograph,
    )
