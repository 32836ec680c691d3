"""Pyramid pooling against loops over cells and positions."""

import math

import torch

from fss.nn.ppm import PPM


def test_ppm_is_a_pyramid_of_averages():
    torch.manual_seed(0)
    ppm = PPM(5, 3, bins=(1, 2, 3, 6)).eval()
    for i in range(4):
        ppm.reduce[i][1].running_mean.uniform_(-0.3, 0.3)
        ppm.reduce[i][1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 5, 7, 10)
    with torch.no_grad():
        out = ppm(x)
        assert out.shape == (2, ppm.channels, 7, 10) and torch.equal(out[:, :5], x)
        for i, bins in enumerate((1, 2, 3, 6)):
            conv, norm = ppm.reduce[i][:2]
            cells = torch.empty(2, 3, bins, bins)
            for r in range(bins):
                for c in range(bins):
                    rows = slice(r * 7 // bins, math.ceil((r + 1) * 7 / bins))
                    columns = slice(c * 10 // bins, math.ceil((c + 1) * 10 / bins))
                    mean = x[:, :, rows, columns].mean((2, 3))  # [2, 5]
                    reduced = mean @ conv.weight[:, :, 0, 0].T
                    reduced = (reduced - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
                    cells[:, :, r, c] = (reduced * norm.weight + norm.bias).clamp(min=0)
            for r in range(7):
                for c in range(10):
                    y, z = r * (bins - 1) / 6, c * (bins - 1) / 9  # corners lie on corners
                    top, left = min(int(y), max(bins - 2, 0)), min(int(z), max(bins - 2, 0))
                    bottom, right = min(top + 1, bins - 1), min(left + 1, bins - 1)
                    upper = cells[:, :, top, left].lerp(cells[:, :, top, right], z - left)
                    lower = cells[:, :, bottom, left].lerp(cells[:, :, bottom, right], z - left)
                    expected = upper.lerp(lower, y - top)
                    torch.testing.assert_close(out[:, 5 + 3 * i : 8 + 3 * i, r, c], expected, rtol=1e-4, atol=1e-5)
