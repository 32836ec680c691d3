"""Batch norm's affine map and ReLU in one pass over the map, by a kernel in Triton on CUDA."""

import importlib.util

import torch
from torch import Tensor

BLOCK = 1024  # numbers that a program of the kernel computes


@torch.library.custom_op("fss::normalize_relu", mutates_args=())
def normalize_relu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """`relu(torch.batch_norm_elemt(x, ...))`: relu((x - mean) * inverse * weight + bias), of the type of x.

    x: [N, C, H, W], in torch's memory format or with the channels last. weight, bias, mean, inverse (of the standard
    deviation): float32 [C].
    """
    gain = inverse * weight
    shift = bias - mean * gain
    return torch.addcmul(shift[:, None, None], x.float(), gain[:, None, None]).relu_().to(x.dtype)


@normalize_relu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    return torch.empty_like(x)


@normalize_relu.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    if importlib.util.find_spec("triton") is None:  # as in some builds for other platforms
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, 0.0).relu_()
    with torch.cuda.device(x.device):
        return launch(x, weight, bias, mean, inverse)


def launch(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """`normalize_relu` of x [N, C, H, W] by the kernel: on a GPU, or on a CPU under Triton's interpreter."""
    from fss.nn.triton_kernels import affine_relu

    out = torch.empty_like(x)
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    pixels = 1 if channels_last else x[0, 0].numel()
    programs = (x.numel() + BLOCK - 1) // BLOCK
    affine_relu[(programs,)](x, weight, bias, mean, inverse, out, x.numel(), x.shape[1], pixels, BLOCK=BLOCK)
    return out
