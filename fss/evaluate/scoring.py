"""How an episode is scored."""

from dataclasses import dataclass

from fss.data.transforms import Resize, Resolution
from fss.datasets.base import Labels


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What decides the score of one episode, beside the method."""

    size: int
    """Side of the square that the method sees, pixels."""
    resize: Resize = "exact"
    """How an image is fitted into that square, see fss.data.transforms.fit_image."""
    resolution: Resolution = "original"
    """Where the prediction meets the truth: at the size of the photograph, or in a square of so many pixels."""
    labels: Labels = "own"
    """Whether a class's pixels are its own mask, or what is left of it in the flattened label map."""
    ignore_255: bool = True
    """Pixels labelled 255 count nowhere; else they are background."""
