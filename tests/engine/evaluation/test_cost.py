"""The arithmetic of one episode, counted."""

import torch
from torch import nn

from fss.data.episodes import Episode
from fss.engine.evaluation.cost import episode_flops
from fss.engine.evaluation.measure import Scoring
from fss.methods.base import Features
from tests.data.labelled import rectangles
from tests.engine.episode_toy import Colour

SIZE = 33


class Convolved(Colour):
    """The toy behind a convolution of 3 x 3, and one more where an image is the query."""

    encodes_queries = True

    def __init__(self) -> None:
        super().__init__()
        self.replica.add_module("convolution", nn.Conv2d(3, 3, 3, padding=1, bias=False))

    def encode(self, image: torch.Tensor) -> Features:
        return {"colour": self.replica.convolution(image)}

    def encode_query(self, image: torch.Tensor) -> Features:
        return {"more": self.replica.convolution(image)}


def test_both_images_and_the_query_once_more(tmp_path):
    shards = rectangles(tmp_path / "set", [1, 1, 1])
    once = 2 * SIZE**2 * 3 * 3 * 9  # a product and a sum for every pixel, channel in and out, and place of the kernel
    flops = episode_flops(Convolved(), shards, Episode(0, 0, 1, 0, (1, 2)), Scoring(size=SIZE), torch.device("cpu"))
    assert flops == 3 * once, "of two shots the first alone"
