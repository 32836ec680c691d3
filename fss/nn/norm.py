"""Batch normalisation over the batches of all ranks, on any device; running statistics; normalization of images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fss.collectives import Collectives
from fss.nn.normalize_relu import normalize_relu
from fss.nn.transfer import device_table, to_device


class _BatchNormFunction(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with mean and variance of the batches of all ranks together."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        count: Tensor,
        collectives: Collectives,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.collectives = collectives
        gain = scale * weight  # [C]
        return torch.addcmul(_channel(bias - mean * gain), x.float(), _channel(gain)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        g = grad.float()
        centred = (x.float() - _channel(mean)) * _channel(scale)  # [N, C, H, W]
        grad_bias, grad_weight = g.sum((0, 2, 3)), (g * centred).sum((0, 2, 3))  # [C] each, of this rank
        mean_g, mean_gx = (
            ctx.collectives.all_reduce(torch.stack([grad_bias, grad_weight])) / count
        ).float()  # of all ranks
        grad_x = (g - _channel(mean_g) - centred * _channel(mean_gx)) * _channel(scale * weight)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None, None


def _channel(vector: Tensor) -> Tensor:
    return vector[None, :, None, None]  # [C] -> [1, C, 1, 1]


class _FusedBatchNormFunction(torch.autograd.Function):
    """The same with the kernels of torch's SyncBatchNorm, which exist on CUDA alone; updates the running statistics.

    relu: whether a ReLU follows.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: "SyncBatchNorm2d", ranks: Collectives, relu: bool
    ) -> Tensor:
        x = _dense(x)
        mean, inverse = torch.batch_norm_stats(x, layer.eps)  # [C] each: mean, 1 / sqrt(var + eps)
        count = _count(x.numel() // x.shape[1], x.device)
        mean_all, inverse_all, counts, bits = ranks.all_gather_coalesced(
            [mean[None], inverse[None], count[:1], count[1:]]  # of R ranks: [R, C], [R, C], [R], [R]
        )
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            x,
            mean_all,
            inverse_all,
            layer.running_mean,
            layer.running_var,
            layer.momentum,
            layer.eps,
            counts,
        )
        ctx.ranks, ctx.relu = ranks, relu
        if relu:
            out = normalize_relu(x, weight, bias, mean, inverse)
        else:
            out = torch.batch_norm_elemt(x, weight, bias, mean, inverse, layer.eps)
        ctx.save_for_backward(x, weight, mean, inverse, bits.view(torch.int32), out if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, counts, out = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        grad = _dense(grad)
        sum_g, sum_gx, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            grad, x, mean, inverse, weight, True, True, True
        )
        sum_g, sum_gx = ctx.ranks.all_reduce_coalesced([sum_g, sum_gx])  # of all ranks
        grad_x = torch.batch_norm_backward_elemt(grad, x, mean, inverse, weight, sum_g, sum_gx, counts)
        return grad_x, grad_weight, grad_bias, None, None, None


@device_table
def _count(count: int, device: torch.device) -> Tensor:
    """A number as the two kernels read it: in float32, and the bits of an int32."""
    as_bits = torch.tensor([count], dtype=torch.int32).view(torch.float32)
    return to_device(torch.cat([torch.tensor([float(count)]), as_bits]), device)


def _dense(x: Tensor) -> Tensor:
    """Give x [N, C, H, W] one of the two memory formats that the fused kernels read."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


class UncountedBatchNorm2d(nn.BatchNorm2d):
    """torch's layer, except that the batches are counted by `count_batches`, for all layers of a network at once."""

    momentum: float  # None would be an average that needs the count of each layer

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [N, C, H, W] over the batch or by the running statistics; the same shape."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


def count_together(module: nn.Module) -> None:
    """Make every nn.BatchNorm2d inside `module` an `UncountedBatchNorm2d` in place; its tensors do not change.

    Layers without a momentum, whose average needs their own count, are left as they are. The network then calls
    `count_batches` in its forward pass.
    """
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d and layer.momentum is not None:
            layer.__class__ = UncountedBatchNorm2d


def count_batches(module: nn.Module) -> None:
    """Count a batch in every `UncountedBatchNorm2d` inside `module` that is in training mode, with one kernel."""
    layers = (layer for layer in module.modules() if isinstance(layer, UncountedBatchNorm2d) and layer.training)
    counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)


class SyncBatchNorm2d(UncountedBatchNorm2d):
    """BatchNorm2d of [N, C, H, W] with the statistics of the batches of all ranks together, forward and backward.

    Like torch's SyncBatchNorm, whose kernels it launches on CUDA, but on CPUs, too; on a single process it is torch's
    plain layer. The gradients of weight and bias are this rank's share; DDP averages them. The ranks may have batches
    of different sizes.
    """

    collectives: Callable[[], Collectives]
    """Called at every step, because a module is built before its collectives are known."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """Normalize x; with `relu`, a ReLU of the result, which costs nothing on CUDA."""
        if self.training and (collectives := self.collectives()).world_size > 1:
            if x.device.type not in ("cpu", "meta"):  # meta: has no such kernels
                return _FusedBatchNormFunction.apply(x, self.weight, self.bias, self, collectives, relu)
            out = self._over_ranks(x, collectives)
        else:
            out = super().forward(x)
        return F.relu_(out) if relu else out

    def _over_ranks(self, x: Tensor, collectives: Collectives) -> Tensor:
        var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)  # [C] each
        var, mean = var.double(), mean.double()  # moments about zero cancel in float32
        here = var.new_full((1,), x.numel() / x.shape[1])
        count, first, second = collectives.all_reduce(torch.cat([here, here * mean, here * (var + mean**2)])).split(
            [1, self.num_features, self.num_features]
        )
        mean = first / count
        var = second / count - mean**2
        assert self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).float(), self.momentum)
        return _BatchNormFunction.apply(
            x, self.weight, self.bias, mean.float(), (var + self.eps).rsqrt().float(), count, collectives
        )


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """relu(norm(x)) of x [N, C, H, W], in one kernel where the layer has one for both."""
    return norm(x, relu=True) if isinstance(norm, SyncBatchNorm2d) else F.relu_(norm(x))


def synchronise(module: nn.Module, collectives: Callable[[], Collectives]) -> None:
    """Replace every BatchNorm2d inside `module` by a SyncBatchNorm2d over `collectives` with the same state.

    The method calls `count_batches` once for each pass through `module`. Raises ValueError for a layer without a
    momentum, whose average over batches needs a count of its own.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SyncBatchNorm2d):
            if child.momentum is None:
                raise ValueError(f"{name} averages over all batches: give it a momentum to synchronise it")
            sync = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
            sync.load_state_dict(child.state_dict())
            sync.collectives = collectives
            setattr(module, name, sync)
        else:
            synchronise(child, collectives)


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether any layer takes statistics over the batch."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances of all batch norm layers, [C] each, in the order of the layers."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    statistics = [statistic for layer in layers for statistic in (layer.running_mean, layer.running_var)]
    return [statistic for statistic in statistics if statistic is not None]


class Normalize(nn.Module):
    """Normalize images by ImageNet's channel means and deviations, uint8 [B, 3, H, W] -> float32 of the same shape.

    Float images are taken as normalized and are returned unchanged.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        deviation = torch.tensor([0.229, 0.224, 0.225])
        mean = torch.tensor([0.485, 0.456, 0.406])
        self.register_buffer("scale", _channel(1 / (255 * deviation)), persistent=False)
        self.register_buffer("shift", _channel(-mean / deviation), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if image.is_floating_point():
            return image
        return torch.addcmul(self.shift, image.float(), self.scale)  # [B, 3, H, W]
