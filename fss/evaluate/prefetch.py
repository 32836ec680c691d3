"""Reading ahead of the network: threads read and decode what the next episodes need while the network computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

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
    """Fitted images and class masks by `Key`, read by `threads` threads as soon as they are expected.

    An image is (float32 [1, 3, S, S], its frame), a mask uint8 [H, W] of 0, 1 and 255. OpenCV decodes without Python's
    lock, so threads are enough.
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

    def take(self, key: Key) -> Sample:
        """`key` now. Raises ShardError, naming the sample, where it cannot be read."""
        coming = self._coming.pop(key, None)
        return coming.result() if coming else self._read(key)

    def drop(self, key: Key) -> None:
        """Keep `key` no longer if it was expected: who took it before still has it."""
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
