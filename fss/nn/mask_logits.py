"""Binary masks that exist only as logits of a lower resolution, as SAM's decoder gives them.

A pixel belongs to a mask if the logits, upsampled bilinearly (corners not aligned) to the image, are above 0 there.
Upsampling is local: the few pixels that a computation reads are interpolated one by one, and a union needs no
interpolation where four neighbouring logits have the same sign.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 16  # masks of a union at a time: at 256 x 256 some 20 MB, on a device some 100


def neighbours(pixels: Tensor, side: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two indices that a bilinear resize from `side` to `size` reads for pixels [M], and the second's weight.

    Gives three tensors [M]. They equal torch's on a CPU bit for bit, which scales in float32 and rounds product and
    difference once.
    """
    scale = torch.tensor(side, dtype=torch.float32).div(size).double().item()
    place = ((pixels.double() + 0.5) * scale - 0.5).float().clamp(min=0)
    first = place.long()
    return first, (first + 1).clamp(max=side - 1), place - first


def at_pixels(logits: Tensor, y: Tensor, x: Tensor, size: int) -> Tensor:
    """Read the masks [N, s, s] at rows y and columns x, int64 [M] each, of a size x size image: bool [N, M]."""
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
    """The rows (or columns) [2 g] that resizing from `size` to g reads, two for each; the weights [g] of the second."""
    first, second, weight = neighbours(torch.arange(grid, device=device), size, grid)
    return torch.stack([first, second], 1).flatten(), weight


def on_grid(logits: Tensor, grid: int, size: int) -> Tensor:
    """Read the masks [N, s, s] at the pixels that resizing them from `size` to g x g reads: bool [N, 2g, 2g]."""
    first, second, weight = neighbours(taps(grid, size, logits.device)[0], logits.shape[-1], size)
    above, below = (logits.index_select(1, rows).float() for rows in (first, second))  # [N, 2g, s]
    rows = above.lerp_(below, weight[:, None]).flatten(0, 1)  # index_select is slow on a third dimension
    bits = rows.index_select(1, first).lerp_(rows.index_select(1, second), weight) > 0
    return bits.unflatten(0, (len(logits), len(first)))


def shares(bits: Tensor, size: int) -> Tensor:
    """Resize masks bilinearly from the pixels that `on_grid` reads: bool [N, 2g, 2g] -> float32 [N, g g].

    The result equals that of torch's interpolate for the whole masks on a CPU bit for bit: the four pixels of a
    position are summed row by row.
    """
    second = taps(bits.shape[-1] // 2, size, bits.device)[1]  # [g]
    weights, masks = (1 - second, second), bits.float()
    corners = (
        masks[:, row::2, column::2] * (weights[row][:, None] * weights[column]) for row in (0, 1) for column in (0, 1)
    )
    return reduce(torch.add, corners).flatten(1)


def union(logits: Tensor, chosen: Tensor, size: int) -> Tensor:
    """The union of the masks [N, s, s] with the indices `chosen`, int64 [M]: bool [size, size]; s divides `size`.

    Four neighbouring logits are the corners of a cell of r x r pixels, r = size / s. If one mask has all four above 0,
    the cell is covered. On a CPU, pixels are interpolated only in the other cells, for masks whose signs differ there;
    elsewhere in all, because the host would wait for the number of such cells. The result is the same.
    """
    side = logits.shape[-1]
    ratio = size // side
    assert ratio * side == size, f"{side} does not divide {size}"
    fraction = (torch.arange(ratio, device=logits.device) + ratio // 2 + 0.5) / ratio - 0.5
    fraction = fraction - fraction.floor()  # [r], of the way from the first to the second corner
    merge = mixed_cells if logits.device.type == "cpu" else every_cell
    image = merge(logits, chosen.split(CHUNK) if len(chosen) else (), fraction)
    start = ratio - ratio // 2  # the first corners of the first cells lie outside the image
    return image[start : start + size, start : start + size].contiguous()


def mixed_cells(logits: Tensor, parts: Sequence[Tensor], fraction: Tensor) -> Tensor:
    """The union with the cells at its edges, interpolated where signs differ: bool [(s + 1) r, (s + 1) r].

    parts: indices of masks [n], taken together. fraction: [r], see `union`.
    """
    side, ratio = logits.shape[-1], len(fraction)
    covered = torch.zeros(side + 1, side + 1, dtype=torch.bool, device=logits.device)
    pixels = covered.new_zeros(covered.numel(), ratio * ratio)
    for part in parts:
        values = with_border(logits[part])
        every, some = corners(values)
        covered |= every.any(0)
        mask, row, column = (some & ~(every | covered)).nonzero(as_tuple=True)  # [m]
        corner = (mask * (side + 2) + row) * (side + 2) + column
        a, b, c, d = (values.flatten()[corner + offset][:, None, None] for offset in (0, 1, side + 2, side + 3))
        hit = a.lerp(b, fraction).lerp(c.lerp(d, fraction), fraction[:, None]) > 0  # [m, r, r]
        cell, pixel = hit.flatten(1).nonzero(as_tuple=True)
        pixels[(row * (side + 1) + column)[cell], pixel] = True
    pixels |= covered.flatten()[:, None]
    return pixels.view(side + 1, side + 1, ratio, ratio).transpose(1, 2).reshape((side + 1) * ratio, -1)


def every_cell(logits: Tensor, parts: Sequence[Tensor], fraction: Tensor) -> Tensor:
    """The same as `mixed_cells`, bool [H, W], interpolated everywhere: no size depends on values."""
    cells, ratio = logits.shape[-1] + 1, len(fraction)
    image = torch.zeros(cells, ratio, cells, ratio, dtype=torch.bool, device=logits.device)
    for part in parts:
        values = with_border(logits[part])
        every, _ = corners(values)
        rows = values[:, :, :-1, None].lerp(values[:, :, 1:, None], fraction)  # [n, s + 2, s + 1, r]
        hit = rows[:, :-1, None].lerp(rows[:, 1:, None], fraction[:, None, None]) > 0  # [n, s + 1, r, s + 1, r]
        image |= hit.logical_or_(every[:, :, None, :, None]).any(0)
    return image.view(cells * ratio, cells * ratio)


def with_border(logits: Tensor) -> Tensor:
    """Logits [n, s, s] as float32, those at the edge repeated once: [n, s + 2, s + 2]."""
    return F.pad(logits.float()[None], (1, 1, 1, 1), mode="replicate")[0]


def corners(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compare a cell's four corners with 0, all and any above it: [n, s + 2, s + 2] -> [n, s + 1, s + 1]."""
    inside = values > 0
    both, either = inside[:, 1:] & inside[:, :-1], inside[:, 1:] | inside[:, :-1]
    return both[:, :, 1:] & both[:, :, :-1], either[:, :, 1:] | either[:, :, :-1]
