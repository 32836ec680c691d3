"""The one way from images and masks to a prediction: scoring, validation, reports, costs and inference all use it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fss.data.transforms import Frame, Resize, fit_image
from fss.errors import RunError
from fss.methods.base import EpisodeMethod, Features, Method, Prediction
from fss.nn.transfer import to_device


class FittedImage(NamedTuple):
    """An image as a method sees it."""

    square: Tensor
    """[1, 3, S, S] on the predictor's device, normalized."""
    frame: Frame
    """Where the image lies in the square."""


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
        fitted = to_device(torch.from_numpy(frame.mask(mask))[None], self.device)  # [1, S, S]
        with self._running():
            return self.method.encode_support(features, fitted)

    def predict(self, query: Features, supports: Sequence[Features], name: str) -> Prediction:
        """Segment a query, given K >= 1 descriptions of supports.

        name: of the query, for the error. Raises RunError if the logits are not finite.
        """
        with self._running():
            prediction = self.method.predict(query, list(supports))
        if not prediction.finite:
            raise RunError(f"the logits of {name} are not finite: give other weights, or run.precision float32")
        return prediction

    def maps(self, query: Features, supports: Sequence[Features]) -> dict[str, Tensor]:
        """The method's maps [h, w] in 0..1 by name, see `EpisodeMethod.maps`."""
        with self._running():
            return self.method.maps(query, list(supports))


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
