"""The scoring of an episode."""

from dataclasses import dataclass

from fss.data.transforms import Resize, Resolution
from fss.datasets.base import Labels


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Everything but the method that decides the score of one episode."""

    size: int
    """Side of the square that the method sees, pixels."""
    resize: Resize = "exact"
    """The rule that fits an image into the square, see fss.data.transforms.fit_image."""
    resolution: Resolution = "original"
    """The size at which prediction and truth are compared: that of the image, or the side of a square in pixels."""
    labels: Labels = "own"
    """'own': the pixels of a class are its own mask; 'flat': those that the flat label map leaves to it."""
    ignore_255: bool = True
    """True: pixels labelled 255 are not counted. False: they are background."""
