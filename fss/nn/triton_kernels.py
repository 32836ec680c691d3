"""Kernels in Triton, which PyTorch's builds for CUDA bring along. Import this file only where they are launched."""

import triton
import triton.language as tl


@triton.jit
def affine_relu(  # type: ignore[no-untyped-def]
    x, weight, bias, mean, inverse, out, size, channels, pixels, BLOCK: tl.constexpr
):
    """out = relu((x - mean) * inverse * weight + bias), by channel; NaN stays NaN.

    x, out: `size` numbers in memory; `pixels` of them, one after the other, belong to the same channel.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    channel = place // pixels % channels
    gain = tl.load(inverse + channel, mask=inside) * tl.load(weight + channel, mask=inside)
    centred = tl.load(x + place, mask=inside).to(tl.float32) - tl.load(mean + channel, mask=inside)
    value = centred * gain + tl.load(bias + channel, mask=inside)
    tl.store(out + place, tl.where(value < 0, 0.0, value), mask=inside)
