"""Bytes to arrays and back: images, masks, label maps, and the tar members of one sample."""

import io

import cv2
import numpy as np
from PIL import Image

from shards.format import IGNORE_LABEL, IMAGE_SUFFIXES, ShardError

_TAR_BLOCK = 512
_END_MARKERS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}  # first bytes of a JPEG and a PNG -> last bytes
_TAIL = 64  # bytes; cameras pad a little behind the end marker


def image_suffix(data: bytes) -> str:
    """Return 'jpg' or 'png' by the first bytes, because file names may be wrong. Raises ShardError for other data."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    raise ShardError("is neither a JPEG nor a PNG")


def decode_image(data: bytes) -> np.ndarray:
    """Decode a JPEG or PNG to RGB uint8 [H, W, 3], rows as stored: an EXIF rotation is ignored, as masks ignore it.

    Raises ShardError if the bytes are no image or end too early.
    """
    marker = _END_MARKERS.get(data[:2])
    if marker is None or marker not in data[-_TAIL:]:
        _require_complete(data)  # OpenCV may return half an image without an error
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise ShardError("image cannot be decoded")
    return image


def _require_complete(data: bytes) -> None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "cannot identify image file" if "identify" in str(error) else str(error)  # no object addresses
        raise ShardError(f"image cannot be decoded ({reason})") from None


def encode_labels(labels: np.ndarray) -> bytes:
    """Encode an integer map [H, W] as a 1-channel PNG: 8 bit, or 16 bit if a label is above 255."""
    dtype = np.uint8 if labels.max(initial=0) <= 255 else np.uint16
    return cv2.imencode(".png", labels.astype(dtype), (cv2.IMWRITE_PNG_COMPRESSION, 6))[1].tobytes()


def decode_labels(data: bytes) -> np.ndarray:
    """Decode the output of :func:`encode_labels`: uint8 or uint16 [H, W]. Raises ShardError for anything else."""
    labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if labels is None or labels.ndim != 2 or b"IEND" not in data[-_TAIL:]:
        raise ShardError("is not a whole 1-channel PNG")
    return labels


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode a boolean mask [H, W] as a 1-channel PNG of 0 and 255."""
    return encode_labels(mask.astype(np.uint8) * 255)


def decode_mask(data: bytes) -> np.ndarray:
    """Decode the output of :func:`encode_mask`: bool [H, W]. Raises ShardError for anything else."""
    return decode_labels(data) > 127


def flatten(
    masks: dict[int, np.ndarray], paint: list[int], ignore: np.ndarray | None, size: tuple[int, ...]
) -> np.ndarray:
    """Flatten class masks bool [H, W] to one label map uint16 [H, W]: 0 background, class ids, IGNORE_LABEL.

    The ignored pixels are painted first, then the masks in the order of `paint`, later over earlier. `size` is
    (height, width). Raises ShardError if there are ignored pixels and a class whose id is IGNORE_LABEL.
    """
    labels = np.zeros(size, np.uint16)
    if ignore is not None:
        if IGNORE_LABEL in masks:
            raise ShardError(
                f"has ignored pixels and class {IGNORE_LABEL}, which have the same label in a flat map: give the class "
                "another id, or leave the ignored pixels out"
            )
        labels[ignore] = IGNORE_LABEL
    for class_id in paint:
        labels[masks[class_id]] = class_id
    return labels


def image_bytes(members: dict[str, bytes]) -> bytes:
    """The encoded image among the members of a sample. Raises ShardError if there is none."""
    for suffix in IMAGE_SUFFIXES:
        if suffix in members:
            return members[suffix]
    raise ShardError(f"has no image, only {', '.join(members)}")


def split_members(raw: bytes) -> dict[str, bytes]:
    """Split the tar bytes of one sample, as the manifest's offset and length give them, to {extension: data}.

    The extension is the member's name after the first dot: 'jpg', 'json', 'mask.7.png'. Our tars have plain ustar
    members only, and reading their headers here costs a fraction of the time of tarfile.

    Raises ShardError unless the bytes are a run of whole members of one sample.
    """
    members: dict[str, bytes] = {}
    keys = set()
    position = 0
    while position < len(raw):
        header = raw[position : position + _TAR_BLOCK]
        if len(header) < _TAR_BLOCK or header[257:262] != b"ustar":
            raise ShardError(f"no tar header at byte {position} of the sample")
        key, _, extension = header[:100].rstrip(b"\0").decode("ascii", "replace").partition(".")
        start = position + _TAR_BLOCK
        try:
            size = int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError:
            raise ShardError(f"damaged tar header at byte {position} of the sample") from None
        if start + size > len(raw):
            raise ShardError(f"member {extension} is cut short")
        keys.add(key)
        members[extension] = raw[start : start + size]
        position = start + -(-size // _TAR_BLOCK) * _TAR_BLOCK
    if len(keys) != 1:
        raise ShardError(f"the bytes belong to {len(keys)} samples instead of one")
    return members
