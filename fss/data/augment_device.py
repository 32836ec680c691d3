"""MoCo v2's augmentation of all views of a batch at once, by tensor operations on any device.

It applies the tables of `fss.data.augment_tables` as `fss.data.augment.Fast` applies the draws: after each step the
values are whole numbers from 0 to 255, here in float32. Nothing in it waits for the device, and the number of kernels
does not depend on the number of views, except that many or large images are resized in several parts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fss.data.augment_tables import BLUR_RADIUS, AugmentTables
from fss.data.packed_images import PackedImages

GREY = (4899 / 2**14, 9617 / 2**14, 1868 / 2**14)  # OpenCV's weights of red, green and blue
PART = 2**25  # pixels x channels that are resized at once: 128 MiB in float32, and as much for their places


def augment(images: PackedImages, groups: Sequence[AugmentTables]) -> list[Tensor]:
    """Make V views of each of B images for each of some groups, in each of which all views are of one size.

    Returns for each group uint8 [V, B, 3, S, S].
    """
    crops = crop_resize(images, groups)
    return [finish(crop, tables) for crop, tables in zip(crops, groups, strict=True)]


def crop_resize(images: PackedImages, groups: Sequence[AugmentTables]) -> list[Tensor]:
    """Crop, resize and flip B images for each group: whole numbers float32 [V, B, S, 3, S].

    The resize is two products with matrices of few entries that are not zero, columns first.
    """
    step = max(1, PART // (images.height * images.width * 3))
    parts: list[list[Tensor]] = [[] for _ in groups]
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        source = images.unpack(part).flatten(1, 2)  # [b, H 3, W]
        for tables, views in zip(groups, parts, strict=True):
            across = resize_matrices(tables.column_first[:, part], tables.column_weight[:, part], images.width)
            down = resize_matrices(tables.row_first[:, part], tables.row_weight[:, part], images.height)
            of_part = []
            for to_columns, to_rows in zip(across.transpose(2, 3), down, strict=True):  # [b, W, S], [b, S, H]
                narrow = round_up_(torch.bmm(source, to_columns))  # [b, H 3, S]
                of_part.append(torch.bmm(to_rows, narrow.view(len(narrow), images.height, -1)))  # [b, S, 3 S]
            views.append(torch.stack(of_part))
    whole = [views[0] if len(views) == 1 else torch.cat(views, 1) for views in parts]  # [V, B, S, 3 S]
    return [round_up_(x).unflatten(3, (3, -1)) for x in whole]


def finish(crop: Tensor, tables: AugmentTables) -> Tensor:
    """Apply to crops [V, B, S, 3, S] what follows the resize: uint8 [V, B, 3, S, S]."""
    x = crop.flatten(0, 1).transpose(1, 2).index_select(0, tables.order)  # [V B, 3, S, S]
    for slot, rows in enumerate(tables.before):
        affine_(x[rows], tables.affine[0, slot, rows])
    shift_hue_(x[tables.hue_rows], tables.hue[tables.hue_rows])
    for slot, rows in enumerate(tables.after):
        affine_(x[rows], tables.affine[1, slot, rows])
    x = torch.where(_column(tables.gray), luma(x).round_()[:, None], x)
    if len(tables.blurred):
        x.index_copy_(0, tables.blurred, blur(x.index_select(0, tables.blurred), tables.kernel))
    return x.index_select(0, tables.place).to(torch.uint8).unflatten(0, crop.shape[:2])


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
