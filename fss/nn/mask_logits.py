"""Binary masks that exist only as logits of a lower resolution, as SAM's decoder leaves them.

A mask is where the logits, upsampled bilinearly (corners not aligned) to the image, are above 0. Upsampling is local:
the few pixels that a computation reads are interpolated one by one, and a union is known without interpolation wherever
four neighbouring logits agree.
"""

from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 16  # masks of a union at a time: at 256 x 256 some 20 MB


def neighbours(pixels: Tensor, side: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where resizing bilinearly from `side` to `size` reads for these pixels: both indices, and the second's weight.

    Bit for bit torch's on a CPU, which scales in float32 and rounds product and difference once.
    """
    scale = torch.tensor(side, dtype=torch.float32).div(size).double().item()
    place = ((pixels.double() + 0.5) * scale - 0.5).float().clamp(min=0)
    first = place.long()
    return first, (first + 1).clamp(max=side - 1), place - first


def at_pixels(logits: Tensor, y: Tensor, x: Tensor, size: int) -> Tensor:
    """The masks [N, s, s] at rows y and columns x, int64 [M] each, of a size x size image: bool [N, M]."""
    side = logits.shape[-1]
    top, bottom, down = neighbours(y, side, size)
    left, right, across = neighbours(x, side, size)
    flat = logits.flatten(1)

    def read(row: Tensor, column: Tensor) -> Tensor:
        return flat.index_select(1, row * side + column).float()

    above = read(top, left).lerp(read(top, right), across)
    below = read(bottom, left).lerp(read(bottom, right), across)
    return above.lerp(below, down) > 0


def taps(grid: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The 2g rows (or columns) that resizing from `size` to g reads, two each, and the weights [g] of the second."""
    first, second, weight = neighbours(torch.arange(grid, device=device), size, grid)
    return torch.stack([first, second], 1).flatten(), weight


def on_grid(logits: Tensor, grid: int, size: int) -> Tensor:
    """The masks [N, s, s] at the pixels that resizing them from `size` to g x g reads, bool [N, 2g, 2g]."""
    first, second, weight = neighbours(taps(grid, size, logits.device)[0], logits.shape[-1], size)
    above, below = (logits.index_select(1, rows).float() for rows in (first, second))  # [N, 2g, s]
    rows = above.lerp_(below, weight[:, None]).flatten(0, 1)  # index_select is slow on a third dimension
    bits = rows.index_select(1, first).lerp_(rows.index_select(1, second), weight) > 0
    return bits.unflatten(0, (len(logits), len(first)))


def shares(bits: Tensor, size: int) -> Tensor:
    """Masks as `on_grid` gives them, [N, 2g, 2g] -> what bilinear resizing makes of them, float32 [N, g g].

    Bit for bit what torch's interpolate makes of the whole masks on a CPU: the four pixels of a position, row by row.
    """
    second = taps(bits.shape[-1] // 2, size, bits.device)[1]  # [g]
    weights, masks = (1 - second, second), bits.float()
    corners = (
        masks[:, row::2, column::2] * (weights[row][:, None] * weights[column]) for row in (0, 1) for column in (0, 1)
    )
    return reduce(torch.add, corners).flatten(1)


def union(logits: Tensor, chosen: Tensor, size: int) -> Tensor:
    """The union of the masks [N, s, s] that `chosen` (indices) names, bool [size, size]; s divides `size`.

    Four neighbouring logits are the corners of a cell of r x r pixels, r = size / s. Where one mask has all four above
    0 the cell is covered; only where that is not so, and the signs of a mask differ, its pixels are interpolated.
    """
    side = logits.shape[-1]
    ratio = size // side
    assert ratio * side == size, f"{side} does not divide {size}"
    fraction = (torch.arange(ratio, device=logits.device) + ratio // 2 + 0.5) / ratio - 0.5
    fraction = fraction - fraction.floor()  # [r], of the way from the first to the second corner
    covered = torch.zeros(side + 1, side + 1, dtype=torch.bool, device=logits.device)
    pixels = covered.new_zeros(covered.numel(), ratio * ratio)
    for part in chosen.split(CHUNK) if len(chosen) else ():
        values = F.pad(logits[part].float()[None], (1, 1, 1, 1), mode="replicate")[0]  # [n, s + 2, s + 2]
        inside = values > 0
        both, either = inside[:, 1:] & inside[:, :-1], inside[:, 1:] | inside[:, :-1]
        every, some = both[:, :, 1:] & both[:, :, :-1], either[:, :, 1:] | either[:, :, :-1]  # [n, s + 1, s + 1]
        covered |= every.any(0)
        mask, row, column = (some & ~(every | covered)).nonzero(as_tuple=True)  # [m]
        corner = (mask * (side + 2) + row) * (side + 2) + column
        a, b, c, d = (values.flatten()[corner + offset][:, None, None] for offset in (0, 1, side + 2, side + 3))
        hit = a.lerp(b, fraction).lerp(c.lerp(d, fraction), fraction[:, None]) > 0  # [m, r, r]
        cell, pixel = hit.flatten(1).nonzero(as_tuple=True)
        pixels[(row * (side + 1) + column)[cell], pixel] = True
    pixels |= covered.flatten()[:, None]
    image = pixels.view(side + 1, side + 1, ratio, ratio).transpose(1, 2).reshape((side + 1) * ratio, -1)
    start = ratio - ratio // 2  # the first corners of the first cells lie outside the image
    return image[start : start + size, start : start + size].contiguous()
