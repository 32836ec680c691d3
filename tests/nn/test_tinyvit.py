"""TinyViT's windows against plain loops; its whole is held by the recorded runs with real weights."""

import torch
from torch.nn import functional as F

from fss.nn.tinyvit import Block, Stage, TinyViT, WindowAttention


def random(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


@torch.inference_mode()
def test_attention_adds_a_bias_by_distance():
    torch.manual_seed(0)
    width, heads, side = 8, 2, 3
    attention = random(WindowAttention(width, heads, side))
    x = torch.randn(2, side * side, width)
    expected = torch.zeros_like(x)
    for m in range(len(x)):
        normed = attention.norm(x[m])
        per_head = attention.qkv(normed).view(-1, heads, 3 * width // heads)  # q, k and v of a head lie together
        for h in range(heads):
            q, k, v = per_head[:, h].chunk(3, 1)
            for i in range(side * side):
                scores = torch.stack(
                    [
                        q[i] @ k[j] / (width / heads) ** 0.5
                        + attention.attention_biases[h, abs(i // side - j // side) * side + abs(i % side - j % side)]
                        for j in range(side * side)
                    ]
                )
                expected[m, i, h * width // heads : (h + 1) * width // heads] = scores.softmax(0) @ v
    torch.testing.assert_close(attention(x), attention.proj(expected), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_windows_over_the_edge_are_filled_with_zeros():
    torch.manual_seed(0)
    block = random(Block(Stage(width=8, blocks=1, heads=2, window=3)))
    x = torch.randn(1, 4, 5, 8)  # two by two windows
    padded = F.pad(x, (0, 0, 0, 1, 0, 2))
    expected = torch.zeros_like(padded)
    for top in (0, 3):
        for left in (0, 3):
            window = padded[:, top : top + 3, left : left + 3].reshape(1, 9, 8)
            expected[:, top : top + 3, left : left + 3] = block.attn(window).view(1, 3, 3, 8)
    torch.testing.assert_close(block._attend(x), expected[:, :4, :5])


@torch.inference_mode()
def test_one_cell_for_16_pixels():
    assert TinyViT().eval()(torch.randn(2, 3, 96, 96)).shape == (2, 256, 6, 6)
