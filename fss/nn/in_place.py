"""Batch norm and ReLU of a CPU that write over maps and gradients nobody reads again, bit for bit the plain layers.

A tenth of a ResNet's training step on a CPU is the traffic and the page faults of maps that are new.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.ops import aten
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


def _plainly(x: Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling()


class _ReLU(torch.autograd.Function):
    """max(x, 0), written over x; its gradient is written over the one that comes in."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.mark_dirty(x.relu_())
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        if grad.stride() != y.stride():    # an expanded one has a value in many places
            return aten.threshold_backward(grad, y, 0)
        return aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)


class _BatchNorm(torch.autograd.Function):
    """Batch norm in training mode; its gradient is written over the one that comes in."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, *moments = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, *moments)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, deviation = ctx.saved_tensors
        grads = grad, torch.empty_like(weight), torch.empty_like(weight)
        aten.native_batch_norm_backward.out(
            grad, x, weight, None, None, mean, deviation, True, ctx.eps, [True] * 3,
            out0=grads[0], out1=grads[1], out2=grads[2],
        )    # fmt: skip
        return *grads, None, None, None, None


class OverwritingReLU(nn.ReLU):
    """A ReLU that writes over its input and, in the backward pass, over the gradient that comes in."""

    def forward(self, x: Tensor) -> Tensor:
        if _plainly(x):
            return super().forward(x)
        return _ReLU.apply(x) if torch.is_grad_enabled() else x.relu_()


class OverwritingBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that writes over its input where no gradient is asked for.

    Asked for, its backward pass writes over the gradient that comes in, if an OverwritingReLU alone reads this layer.
    """

    before_relu = False

    def forward(self, x: Tensor) -> Tensor:
        overwrites_grad = torch.is_grad_enabled() and self.before_relu and self.training
        if _plainly(x) or (torch.is_grad_enabled() and not overwrites_grad):
            return super().forward(x)
        if self.training:
            self.num_batches_tracked.add_(1)
        state = self.weight, self.bias, self.running_mean, self.running_var
        if overwrites_grad:
            return _BatchNorm.apply(x, *state, self.momentum, self.eps)
        unused = [torch.empty_like(self.running_mean) for _ in range(2)]    # mean and deviation, for a backward pass
        return torch.native_batch_norm(x, *state, self.training, self.momentum, self.eps, out=(x, *unused))[0]


def overwrite_maps(resnet: ResNet) -> None:
    """Make the batch norms and ReLUs of `resnet` overwriting ones, in place; its state stays what it is.

    Not for one whose inner maps, or their gradients, are kept by a hook.
    """
    for layer in resnet.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = OverwritingBatchNorm2d
        elif type(layer) is nn.ReLU:
            layer.__class__ = OverwritingReLU
    for block in resnet.modules():
        if isinstance(block, ResNet | BasicBlock | Bottleneck):
            block.bn1.before_relu = True
        if isinstance(block, Bottleneck):
            block.bn2.before_relu = True
