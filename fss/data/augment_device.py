"""MoCo v2's augmentation of all views of a batch at once, by tensor operations on any device.

It applies the tables of `fss.data.augment_tables` as `fss.data.augment.Fast` applies the draws: after each step the
values are whole numbers from 0 to 255, here in float32. Nothing in it waits for the device, and the number of kernels
does not depend on the number of views, except that many or large images are resized in several parts.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fss.data.augment_tables import BLUR_RADIUS, AugmentTables

GREY = (4899 / 2**14, 9617 / 2**14, 1868 / 2**14)  # OpenCV's weights of red, green and blue
PART = 2**26  # pixels x channels that are resized at once: 256 MiB in float32


def augment(pixels: Tensor, tables: AugmentTables) -> Tensor:
    """Make V views each of B images.

    pixels: [B, H, W, 3] uint8, every image at the upper left of its buffer; what surrounds it is not read.
    Returns uint8 [V, B, 3, S, S].
    """
    x = crop_resize(pixels, tables)  # [V B, S, 3, S]
    x = x.transpose(1, 2).index_select(0, tables.order)  # [V B, 3, S, S]
    for slot, rows in enumerate(tables.before):
        affine_(x[rows], tables.affine[0, slot, rows])
    shift_hue_(x[tables.hue_rows], tables.hue[tables.hue_rows])
    for slot, rows in enumerate(tables.after):
        affine_(x[rows], tables.affine[1, slot, rows])
    x = torch.where(_column(tables.gray), luma(x).round_()[:, None], x)
    if len(tables.blurred):
        x.index_copy_(0, tables.blurred, blur(x.index_select(0, tables.blurred), tables.kernel))
    views = x.index_select(0, tables.place).to(torch.uint8)
    return views.unflatten(0, tables.column_first.shape[:2])


def crop_resize(pixels: Tensor, tables: AugmentTables) -> Tensor:
    """Crop, resize and flip images, uint8 [B, H, W, 3] -> whole numbers float32 [V B, S, 3, S], not yet clipped.

    The resize is two products with matrices of few entries that are not zero, columns first.
    """
    images, height, width, channels = pixels.shape
    step = max(1, PART // (height * width * channels))
    parts = []
    for start in range(0, images, step):
        part = slice(start, start + step)
        source = pixels[part].transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        source = source.flatten(1, 2)  # [b, H 3, W]
        across = resize_matrices(tables.column_first[:, part], tables.column_weight[:, part], width)  # [V, b, S, W]
        down = resize_matrices(tables.row_first[:, part], tables.row_weight[:, part], height)  # [V, b, S, H]
        views = []
        for to_columns, to_rows in zip(across.transpose(2, 3), down, strict=True):
            narrow = round_up_(torch.bmm(source, to_columns))  # [b, H 3, S]
            views.append(torch.bmm(to_rows, narrow.view(len(narrow), height, -1)))  # [b, S, 3 S]
        parts.append(torch.stack(views))
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)  # [V, B, S, 3 S]
    return round_up_(whole).flatten(0, 1).unflatten(2, (channels, -1))


def round_up_(x: Tensor) -> Tensor:
    """Round x [...] to whole numbers in place, halves up, as torch does where it resizes uint8; returns it."""
    return x.add_(0.5).floor_()


def resize_matrices(first: Tensor, weight: Tensor, extent: int) -> Tensor:
    """Write weights [..., S, T] of neighbours, from pixel `first` [..., S] on, into matrices [..., S, extent]."""
    pixel = first[..., None] + torch.arange(weight.shape[-1], device=weight.device)  # [..., S, T]
    return weight.new_zeros((*first.shape, extent)).scatter_(-1, pixel, weight)


def luma(x: Tensor) -> Tensor:
    """The grey form of views [n, 3, S, S], not rounded: [n, S, S]."""
    red, green, blue = x.unbind(1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def affine_(x: Tensor, weights: Tensor) -> None:
    """Add up views [n, 3, S, S], their grey form, their mean grey and a constant, by `weights` [n, 4], in place.

    Brightness, contrast and saturation are such sums.
    """
    if not len(x):
        return
    of_view, of_grey, of_mean, constant = weights.unbind(1)
    grey = luma(x)
    constant = torch.addcmul(constant, grey.mean((1, 2)).round_(), of_mean)  # [n]
    x.mul_(_column(of_view)).addcmul_(grey.round_()[:, None], _column(of_grey)).add_(_column(constant))
    x.round_().clamp_(0, 255)


def shift_hue_(x: Tensor, shift: Tensor) -> None:
    """Shift the hue of views [n, 3, S, S] by `shift` [n] / 256 of a circle, in place.

    By way of hue, saturation and value in 8 bits each, as OpenCV does: with hues of 1/256 of a circle on the way there,
    and 1/255 on the way back.
    """
    if not len(x):
        return
    value, brightest = x.max(1, keepdim=True)  # [n, 1, S, S] each, as all below unless it says otherwise
    spread = value - x.amin(1, keepdim=True)
    difference = (x.roll(-1, 1) - x.roll(-2, 1)).gather(1, brightest)  # of the two other channels
    hue = difference.add_(spread * brightest, alpha=2).div_(spread.clamp(min=1)).mul_(256 / 6).round_()
    saturation = spread.mul_(255).div_(value.clamp(min=1)).round_()
    # A channel is value (1 - saturation f) where f rises and falls with the distance of its colour from the hue.
    hue = hue.add_(_column(shift)).remainder_(256).mul_(6 / 255)
    sixths = (torch.arange(5, 0, -2, device=x.device).view(3, 1, 1) + hue).remainder_(6)  # [n, 3, S, S]
    share = torch.minimum(sixths, 4 - sixths).clamp_(0, 1)
    torch.addcmul(value, saturation.mul_(value), share, value=-1 / 255, out=x).round_()


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Blur views [m, 3, S, S] by kernels [m, 13] along both axes; pixels at the border are repeated beyond it."""
    planes = x.flatten(0, 1)[None]  # [1, 3 m, S, S]
    weight = kernel.repeat_interleave(3, 0, output_size=3 * len(kernel))  # [3 m, 13]
    r, groups = BLUR_RADIUS, len(weight)
    planes = F.conv2d(F.pad(planes, (r, r, 0, 0), mode="replicate"), weight[:, None, None], groups=groups)
    planes = F.conv2d(F.pad(planes, (0, 0, r, r), mode="replicate"), weight[:, None, :, None], groups=groups)
    return planes.round_().view_as(x)


def _column(vector: Tensor) -> Tensor:
    return vector[:, None, None, None]  # [n] -> [n, 1, 1, 1]
