"""BAM's decoder against the network with its prototype tiled."""

import pytest
import torch
from torch.nn import functional as F

from fss.nn.meta_decoder import MetaDecoder


@pytest.mark.parametrize("widths", [[], [1], [6, 1, 4]], ids=str)
def test_the_decoder_is_the_one_with_everything_side_by_side(widths):
    torch.manual_seed(0)
    decoder = MetaDecoder(4, sum(widths), 0.0).eval()
    query, prototype = torch.randn(2, 4, 9, 9), torch.randn(2, 4)
    maps = [torch.randn(2, width, 9, 9) for width in widths]
    tiled = prototype[:, :, None, None].expand(-1, -1, 9, 9)
    x = F.relu(F.conv2d(torch.cat([query, tiled, *maps], 1), decoder.merge.weight))
    x = F.relu(F.conv2d(decoder.pyramid(x), decoder.join.weight))
    expected = decoder.classify(decoder.smooth(x) + x)
    torch.testing.assert_close(decoder(query, prototype, maps), expected, rtol=1e-4, atol=1e-5)


def test_without_a_prototype_nothing_waits_for_one():
    decoder = MetaDecoder(4, 1, 0.0, prototype=False)
    assert decoder.merge.in_channels == 5
    decoder(torch.randn(1, 4, 5, 5), None, [torch.rand(1, 1, 5, 5)]).sum().backward()
    assert decoder.merge.weight.grad.abs().sum() > 0
