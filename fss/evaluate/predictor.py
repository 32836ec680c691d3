"""The one way from images and masks to a prediction: scoring, validation, reports, costs and inference all use it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fss.data.transforms import Frame, Resize, Resolution, fit_image
from fss.errors import RunError
from fss.methods.base import EpisodeMethod, Features, Method, Prediction
from fss.nn.transfer import to_device, to_host


class FittedImage(NamedTuple):
    """An image as a method sees it."""

    square: Tensor
    """[1, 3, S, S] on the predictor's device, normalized."""
    frame: Frame
    """Where the image lies in the square."""


class Segmentation(NamedTuple):
    """A segmented query, on the host."""

    mask: np.ndarray
    """uint8 [h, w]: 1 where the class is."""
    flags: tuple[str, ...]
    """Of the prediction."""


class EpisodePredictor:
    """Runs a method on episodes: fits images, encodes them, describes supports, predicts queries.

    Every call runs in evaluation mode, without gradients and in the precision of `autocast`; modules come back in the
    mode they had. Whoever makes many calls enters the predictor once (`with predictor:`), which switches modes once.

    device: where the method's modules are. size: side S of the square that the method sees, pixels; None: its own.
    resize: how an image is fitted into the square, see `fss.data.transforms.fit_image`. autocast: gives the context
    in which networks run, such as `DistributedContext.autocast`.
    """

    def __init__(
        self,
        method: EpisodeMethod,
        *,
        device: torch.device,
        size: int | None = None,
        resize: Resize = "exact",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.method = method
        self.device = device
        self.size = size or method.config.size
        self.resize: Resize = resize
        self._autocast = autocast
        self._entered: list[AbstractContextManager] = []

    def __enter__(self) -> Self:
        running = self._running()
        running.__enter__()
        self._entered.append(running)  # only now: until then, `_running` switches modes
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.pop().__exit__(kind, error, trace)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Evaluation mode, no gradients, the job's precision; nothing is done again inside of `with predictor`."""
        if self._entered:
            yield
            return
        with evaluation_mode(self.method), torch.inference_mode(), self._autocast():
            yield

    def fit(self, image: np.ndarray) -> FittedImage:
        """Fit an image uint8 RGB [H, W, 3] into the square."""
        square, frame = fit_image(image, self.size, self.resize)  # [3, S, S]
        return FittedImage(to_device(square[None], self.device), frame)

    def encode(self, square: Tensor) -> Features:
        """The method's features of an image [1, 3, S, S]."""
        with self._running():
            return self.method.encode(square)

    def encode_query(self, square: Tensor, features: Features) -> Features:
        """`features` of an image [1, 3, S, S] with what the method needs of a query besides."""
        return features | self.query_extras(square)

    def query_extras(self, square: Tensor) -> Features:
        """The features that the method needs of an image [1, 3, S, S] only as the query; empty if there are none."""
        if not self.method.needs_query_encoding:
            return {}
        with self._running():
            return self.method.encode_query(square)

    def encode_support(self, features: Features, mask: np.ndarray, frame: Frame) -> Features:
        """The method's description of a support, from its features and its mask uint8 [H, W] of 0, 1 and 255.

        Raises ShardError if the mask has not the size of the image that `frame` is of.
        """
        return self.encode_supports([(features, mask, frame)])[0]

    def encode_supports(self, supports: Iterable[tuple[Features, np.ndarray, Frame]]) -> list[Features]:
        """`encode_support` of several supports of a class; the host waits for the device once at most.

        supports: features, mask uint8 [H, W] and frame of each, taken one by one.
        Raises ShardError as `encode_support`.
        """
        fitted = (
            (features, to_device(torch.from_numpy(frame.mask(mask))[None], self.device))  # [1, S, S]
            for features, mask, frame in supports
        )
        with self._running():
            return self.method.encode_supports(fitted)

    def predict(self, query: Features, supports: Sequence[Features], name: str) -> Prediction:
        """Segment a query, given K >= 1 descriptions of supports; for logits the host waits for the device.

        name: of the query, for the error. Raises RunError if the logits are not finite.
        """
        prediction = self.predict_unchecked(query, supports)
        if prediction.logits is not None:
            _check_finite(prediction.finite, name)
        return prediction

    def predict_unchecked(self, query: Features, supports: Sequence[Features]) -> Prediction:
        """As `predict`, whether the logits are finite or not."""
        with self._running():
            return self.method.predict(query, list(supports))

    def segment(
        self, query: Features, supports: Sequence[Features], name: str, frame: Frame, resolution: Resolution
    ) -> Segmentation:
        """Segment a query as `predict` at the size at which it is scored; the host waits once, for mask and check.

        frame: of the query. Raises RunError if the logits are not finite.
        """
        prediction = self.predict_unchecked(query, supports)
        mask, finite = to_host(frame.resize_margin(prediction.margin, resolution) > 0, prediction.finite)
        _check_finite(finite, name)
        return Segmentation(mask.numpy().view(np.uint8), prediction.flags)

    def maps(self, query: Features, supports: Sequence[Features]) -> dict[str, Tensor]:
        """The method's maps [h, w] in 0..1 by name, see `EpisodeMethod.maps`."""
        with self._running():
            return self.method.maps(query, list(supports))


def _check_finite(finite: Tensor, name: str) -> None:
    """Raise RunError unless `finite`, a bool scalar, is true. name: of the query."""
    if not finite:
        raise RunError(f"the logits of {name} are not finite: give other weights, or run.precision float32")


@contextmanager
def evaluation_mode(method: Method) -> Iterator[None]:
    """Every module of the method in evaluation mode while inside, and afterwards in the mode it had."""
    modules = [module for part in (method.trainable, method.non_trainable) for module in part.modules()]
    before = [module.training for module in modules]
    method.trainable.eval()
    method.non_trainable.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
