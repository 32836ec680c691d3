"""The arithmetic of one episode, counted."""

import torch
from torch import nn

from fss.data.episodes import Episode
from fss.evaluate.cost import episode_flops
from fss.evaluate.predictor import EpisodePredictor
from fss.methods.base import Features
from tests.support.episode_toy import Colour
from tests.support.labelled import rectangles

SIZE = 33


class Convolved(Colour):
    """The toy behind a convolution of 3 x 3, and one more where an image is the query."""

    needs_query_encoding = True

    def __init__(self) -> None:
        super().__init__()
        self.non_trainable.add_module("convolution", nn.Conv2d(3, 3, 3, padding=1, bias=False))

    def encode(self, image: torch.Tensor) -> Features:
        return {"colour": self.non_trainable.convolution(image)}

    def encode_query(self, image: torch.Tensor) -> Features:
        return {"more": self.non_trainable.convolution(image)}


def test_both_images_and_the_query_once_more(tmp_path):
    shards = rectangles(tmp_path / "set", [1, 1, 1])
    once = 2 * SIZE**2 * 3 * 3 * 9  # a product and a sum for every pixel, channel in and out, and place of the kernel
    predictor = EpisodePredictor(Convolved(), device=torch.device("cpu"), size=SIZE)
    flops = episode_flops(predictor, shards, Episode(0, 0, 1, 0, (1, 2)), "own")
    assert flops == 3 * once, "of two shots the first alone"
