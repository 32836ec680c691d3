"""Reading ahead: threads read and decode the images and masks of the next episodes while the network computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from fss.data.transforms import Frame, Resize, class_mask, fit_image
from fss.datasets.base import Labels
from shards.codec import decode_image, image_bytes
from shards.format import ShardError
from shards.read import ShardSet

Key = int | tuple[int, int]  # an image; or an image and a class: the mask
Sample = tuple[Tensor, Frame] | np.ndarray


class Prefetcher:
    """Reads fitted images and class masks in `threads` threads as soon as they are expected.

    OpenCV decodes without Python's global lock, so threads are enough.
    """

    def __init__(self, shards: ShardSet, *, size: int, resize: Resize, labels: Labels, threads: int) -> None:
        self._shards = shards
        self._size = size
        self._resize = resize
        self._labels = labels
        self._pool = ThreadPoolExecutor(threads, "reader") if threads else None
        self._coming: dict[Key, Future[Sample]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def expect(self, key: Key) -> None:
        """Begin to read `key`, which will be taken soon."""
        if self._pool and key not in self._coming:
            self._coming[key] = self._pool.submit(self._read, key)

    def take_image(self, index: int) -> tuple[Tensor, Frame]:
        """The fitted image of a sample, float32 [1, 3, S, S], and its frame.

        Raises ShardError, naming the sample, if it cannot be read.
        """
        return self._take(index)

    def take_mask(self, index: int, class_id: int) -> np.ndarray:
        """The mask of a class in a sample, uint8 [H, W] of 0, 1 and 255.

        Raises ShardError, naming the sample, if it cannot be read.
        """
        return self._take((index, class_id))

    def _take(self, key: Key) -> Any:
        coming = self._coming.pop(key, None)
        return coming.result() if coming else self._read(key)

    def drop(self, key: Key) -> None:
        """Forget `key` if it was expected: the caller still has it from an earlier take."""
        if coming := self._coming.pop(key, None):
            coming.cancel()

    def _read(self, key: Key) -> Sample:
        index = key if isinstance(key, int) else key[0]
        try:
            members = self._shards.read(index)
            if isinstance(key, tuple):
                return class_mask(members, key[1], self._labels)
            image = decode_image(image_bytes(members))
        except ShardError as error:
            raise ShardError(
                f"sample {self._shards.keys[index]} cannot be read ({error}), and an evaluation leaves none out: see "
                f"what else is wrong with python -m shards.check {self._shards.folder}"
            ) from None
        fitted, frame = fit_image(image, self._size, self._resize)  # [3, S, S]
        return fitted[None], frame
