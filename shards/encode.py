"""Check and encoding of one sample as tar members, the work of the packing processes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.codec import decode_image, encode_labels, encode_mask, flatten, image_suffix
from shards.format import Meta, ReadError, ShardError
from shards.sources import MISSING, Item, Sample
from shards.superpixels import label_map


@dataclass
class Packed:
    """A sample ready for the tar, or the reason for its absence."""

    key: str
    source: str
    meta: Meta | None
    members: dict[str, bytes]
    reason: str = ""


def encode_item(item: Item, superpixels: Sequence[str]) -> Packed:
    """Read, check and encode one sample; a fault of its files is returned as the reason.

    Raises ReadError if the disk and not the sample has a fault, and MemoryError.
    """
    try:
        meta, members = encode_sample(item.read(), item.source, superpixels)
    except (ReadError, MemoryError):
        raise
    except ShardError as error:
        return Packed(item.key, item.source, None, {}, reason=str(error))
    except Exception as error:  # decoders fail in many ways on one odd file, and the others are still packed
        # An OSError without a number comes from a decoder and is about the bytes.
        if isinstance(error, OSError) and error.errno is not None and error.errno not in MISSING:
            raise ReadError(f"{error.filename or item.source} cannot be read ({error.strerror})") from None
        return Packed(item.key, item.source, None, {}, reason=_reason(error))
    return Packed(item.key, item.source, meta, members)


def _reason(error: Exception) -> str:
    """Return 'Type: message' on one line, without addresses of objects: the same words at every attempt."""
    message = re.sub(r" (object )?at 0x[0-9a-f]+", "", str(error))
    return " ".join(f"{type(error).__name__}: {message}".split())


def encode_sample(sample: Sample, source: str, superpixels: Sequence[str]) -> tuple[Meta, dict[str, bytes]]:
    """Check a sample against its decoded image and encode it: metadata and {extension: bytes}.

    Raises ShardError if the image cannot be decoded or a mask has another size.
    """
    image = decode_image(sample.image)  # [H, W, 3]
    size = image.shape[:2]
    maps = {f"mask of class {class_id}": mask for class_id, mask in sample.masks.items()}
    for what, array in {**maps, "ignore mask": sample.ignore, "label map": sample.labels}.items():
        if array is not None and array.shape != size:
            turned = array.shape == size[::-1]
            raise ShardError(
                f"{what} is {_dimensions(array.shape)} pixels, the image {_dimensions(size)}"
                + ": its EXIF orientation may turn it where it is shown, so turn the file itself or the mask" * turned
            )

    meta = Meta(
        source=source,
        height=size[0],
        width=size[1],
        classes={class_id: int(np.count_nonzero(mask)) for class_id, mask in sorted(sample.masks.items())},
        paint=sample.paint,
        instances=sample.instances,
        crop_of=sample.crop_of,
    )
    members = {image_suffix(sample.image): sample.image}
    members |= {f"mask.{class_id}.png": encode_mask(mask) for class_id, mask in sample.masks.items()}
    if sample.ignore is not None:
        members["ignore.png"] = encode_mask(sample.ignore)
    if sample.labels is not None:
        painted = flatten(sample.masks, sample.paint, sample.ignore, size)
        if not np.array_equal(painted, sample.labels):
            members["labels.png"] = encode_labels(sample.labels)
    for algorithm in superpixels:
        labels, fallback = label_map(image, algorithm)
        members[f"{algorithm}.png"] = encode_labels(labels)
        meta.superpixels[algorithm] = {"count": int(labels.max()) + 1, "fallback": fallback}
    members["json"] = meta.encode()
    return meta, members


def _dimensions(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in reversed(shape))
