"""ASPP against loops over positions and taps."""

import torch

from fss.nn.aspp import ASPP


def test_aspp_is_five_branches():
    torch.manual_seed(0)
    aspp = ASPP(3, dilations=(2, 3, 5))
    x = torch.randn(2, 3, 6, 8)
    with torch.no_grad():
        out = aspp(x)
        assert out.shape == (2, aspp.channels, 6, 8) == (2, 15, 6, 8)
        whole = x.mean((2, 3)) @ aspp.whole.weight[:, :, 0, 0].T + aspp.whole.bias  # [2, 3]
        for r in range(6):
            for c in range(8):
                expected = [whole, x[:, :, r, c] @ aspp.point.weight[:, :, 0, 0].T + aspp.point.bias]
                for conv, dilation in zip(aspp.atrous, (2, 3, 5), strict=True):
                    total = conv.bias.expand(2, 3)
                    for i in (-1, 0, 1):
                        for j in (-1, 0, 1):
                            y, z = r + i * dilation, c + j * dilation
                            if 0 <= y < 6 and 0 <= z < 8:
                                total = total + x[:, :, y, z] @ conv.weight[:, :, i + 1, j + 1].T
                    expected.append(total)
                torch.testing.assert_close(out[:, :, r, c], torch.cat(expected, 1).clamp(min=0), rtol=1e-4, atol=1e-5)
