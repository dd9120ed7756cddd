"""The convolutions of a MedNeXt block, fast on a CPU.

PyTorch's own gradients of depthwise 3-D convolutions are 3 to 20 times slower than need be: here
the gradient of the input is a convolution again, and that of the weight is taken plane by plane in
2-D, for which oneDNN has a depthwise kernel. The widened half goes through the caches in chunks of
voxels and keeps nothing but its input for the backward pass. On a GPU, and under autocast,
everything is PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 2**18  # numbers of a widened chunk: 1 MiB, which stays in the second-level cache
LAST = torch.channels_last_3d


def quick(x: Tensor) -> bool:
    """Whether these kernels are the faster ones for x."""
    plain = x.device.type == "cpu" and x.dtype is torch.float32
    return plain and not torch.is_autocast_enabled("cpu")


def laid_out(x: Tensor) -> Tensor:
    """Return x with its channels beside each other in memory where that is quicker."""
    return x.contiguous(memory_format=LAST) if x.device.type == "cpu" else x


def depthwise(x: Tensor, layer: nn.Conv3d | nn.ConvTranspose3d) -> Tensor:
    """Apply a depthwise layer of odd kernel, padded by half of it, with stride 1 or 2."""
    if not quick(x):
        return layer(x)
    apply = _Transposed.apply if isinstance(layer, nn.ConvTranspose3d) else _Depthwise.apply
    return apply(x, layer.weight, layer.bias, layer.stride[0])


def pointwise(x: Tensor, layer: nn.Conv3d | nn.ConvTranspose3d, *, bias: bool = True) -> Tensor:
    """Apply a layer of kernel 1 to every voxel, whatever its stride."""
    weight = layer.weight.flatten(1)
    weight = weight.t() if isinstance(layer, nn.ConvTranspose3d) else weight
    offset = layer.bias if bias else None
    if x.device.type != "cpu":
        return F.conv3d(x, weight[:, :, None, None, None], offset)
    return F.linear(x.movedim(1, -1), weight, offset).movedim(-1, 1)


def feed_forward(x: Tensor, norm: nn.GroupNorm, expand: nn.Conv3d, compress: nn.Conv3d) -> Tensor:
    """Return compress(GELU(expand(norm(x)))); every channel is a group of its own."""
    if not quick(x):
        # torch.group_norm, unlike F.group_norm, allows a single voxel: what is left is the bias
        x = torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return compress(F.gelu(expand(x)))
    layers = [expand.weight.flatten(1), expand.bias, compress.weight.flatten(1), compress.bias]
    return _FeedForward.apply(x, norm.eps, norm.weight, norm.bias, *layers)


# --- Depthwise convolution ---


class _Depthwise(torch.autograd.Function):
    """conv3d(groups=channels)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return gathered(x, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        if ctx.stride == 1:  # the gradient is the correlation with the mirrored kernel
            to_x = gathered(grad, weight.flip(2, 3, 4), None, 1)
        else:
            to_x = spread(grad, weight, tuple(x.shape), ctx.stride)
        return to_x, weight_gradient(x, grad, weight.shape[2], ctx.stride), _over_voxels(grad), None


class _Transposed(torch.autograd.Function):
    """conv_transpose3d(groups=channels): n voxels become stride (n - 1) + 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        shape = (*x.shape[:2], *[stride * (n - 1) + 1 for n in x.shape[2:]])
        return spread(x.contiguous(memory_format=LAST), weight, shape, stride, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        to_x = gathered(grad, weight, None, ctx.stride)
        return to_x, weight_gradient(grad, x, weight.shape[2], ctx.stride), _over_voxels(grad), None


def gathered(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """y[i] = b + sum over taps d of w[d] x[stride i + d - radius], per channel."""
    return F.conv3d(x, weight, bias, stride, weight.shape[2] // 2, groups=x.shape[1])


def spread(
    y: Tensor, weight: Tensor, shape: tuple[int, ...], stride: int, bias: Tensor | None = None
) -> Tensor:
    """x[stride i + d - radius] += w[d] y[i]: the transpose of `gathered`, into zeros or a bias."""
    x = torch.empty(shape, dtype=y.dtype, memory_format=LAST)
    x.copy_(y.new_zeros(()) if bias is None else bias[:, None, None, None])
    radius = weight.shape[2] // 2
    extra = [n - (stride * (m - 1) + 1) for n, m in zip(shape[3:], y.shape[3:], strict=True)]
    for into, planes in zip(_planes(x), _planes(y), strict=True):  # (X, C, Y, Z)
        for tap in range(weight.shape[2]):
            near, far = _met(tap - radius, stride, len(planes), len(into))
            into[far] += F.conv_transpose2d(
                planes[near], weight[:, :, tap], None, stride, radius, extra, len(weight)
            )
    return x


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int) -> Tensor:
    """w[d] = sum over i of grad[i] x[stride i + d - radius], plane by plane."""
    radius, channels = kernel // 2, x.shape[1]
    like = x.new_empty(channels, 1, kernel, kernel)
    found = x.new_zeros(channels, 1, kernel, kernel, kernel)
    for seen, planes in zip(_planes(x), _planes(grad), strict=True):  # (X, C, Y, Z)
        for tap in range(kernel):
            near, far = _met(tap - radius, stride, len(planes), len(seen))
            found[:, :, tap] += torch.ops.aten.convolution_backward(
                *(planes[near], seen[far], like, None),
                *([stride] * 2, [radius] * 2, [1] * 2, False, [0] * 2, channels),
                output_mask=[False, True, False],
            )[1]
    return found


def _planes(x: Tensor) -> Tensor:
    """Return (B, X, C, Y, Z): stacks of 2-D images, without copying."""
    return x.transpose(1, 2)


def _met(shift: int, stride: int, near: int, far: int) -> tuple[slice, slice]:
    """Return the places i of `near` planes, and stride i + shift of `far`, where both are."""
    first = max(0, -(shift // stride))
    last = min(near, (far - 1 - shift) // stride + 1)
    begin = stride * first + shift
    return slice(first, last), slice(begin, begin + stride * (last - first), stride)


def _over_voxels(grad: Tensor) -> Tensor:
    return _volumes(grad).sum((0, 1))


# --- Normalise, widen, bend, narrow ---


class _FeedForward(torch.autograd.Function):
    """W2 GELU(W1 n + b1) + b2 of n = γ x̂ + β, x̂ = (x - mean) / deviation of each volume's channel.

    With x centred, γ / deviation scales the columns of W1 and β joins b1, so that n is never made.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, *layers: Tensor) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, *layers)
        gamma, beta, w1, b1, w2, b2 = layers
        rows = _volumes(x)  # (B, N, C)
        out = rows.new_empty(*rows.shape[:2], len(w2))
        for volume, answer in zip(rows, out, strict=True):
            mean, scale = _statistics(volume, eps)
            columns, offset = (w1 * (gamma * scale)).t(), b1 + w1 @ beta
            for some in _chunks(len(rows[0]), len(w1)):
                wide = F.gelu(torch.addmm(offset, volume[some] - mean, columns))
                torch.addmm(b2, wide, w2.t(), out=answer[some])
        return out.unflatten(1, x.shape[2:]).movedim(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *layers = ctx.saved_tensors
        gamma, beta, w1, b1, w2, _ = layers
        to_gamma, to_beta, to_w1, to_b1, to_w2, to_b2 = (torch.zeros_like(t) for t in layers)
        rows, grads = _volumes(x), _volumes(grad)
        to_x, count = torch.empty_like(rows), rows.shape[1]
        for volume, back, to_volume in zip(rows, grads, to_x, strict=True):
            mean, scale = _statistics(volume, ctx.eps)
            columns, offset = (w1 * (gamma * scale)).t(), b1 + w1 @ beta
            products, sums = torch.zeros_like(w1), torch.zeros_like(b1)
            for some in _chunks(count, len(w1)):  # sums over voxels of dh (x - mean), and of dh
                centred = volume[some] - mean
                before = torch.addmm(offset, centred, columns)
                to_w2.addmm_(back[some].t(), F.gelu(before))
                to_before = torch.ops.aten.gelu_backward(back[some] @ w2, before)
                products.addmm_(to_before.t(), centred)
                sums += to_before.sum(0)
                torch.mm(to_before, w1, out=to_volume[some])
            # dn = W1ᵀ dh, so that its sums over voxels follow from those of dh
            dn_sum, dn_x = w1.t() @ sums, (w1 * products).sum(0) * scale
            gain = gamma * scale
            slope, level = -gain * scale * dn_x / count, -gain * dn_sum / count
            for some in _chunks(count, len(w1)):
                to_volume[some].mul_(gain).addcmul_(volume[some] - mean, slope).add_(level)
            to_w1 += products * gain + torch.outer(sums, beta)
            to_b1, to_beta, to_gamma = to_b1 + sums, to_beta + dn_sum, to_gamma + dn_x
            to_b2 += back.sum(0)
        to_x = to_x.unflatten(1, x.shape[2:]).movedim(-1, 1)
        return to_x, None, to_gamma, to_beta, to_w1, to_b1, to_w2, to_b2


def _statistics(volume: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return every channel's mean and 1 / sqrt(variance + eps), of (N, C)."""
    mean = volume.mean(0)
    squares = torch.zeros_like(mean)
    for some in _chunks(*volume.shape):
        squares += (volume[some] - mean).square_().sum(0)
    return mean, (squares / len(volume) + eps).rsqrt()


def _volumes(x: Tensor) -> Tensor:
    """Return (B, X Y Z, C), without copying where channels come last."""
    return x.movedim(1, -1).flatten(1, 3)


def _chunks(rows: int, width: int) -> list[slice]:
    size = max(256, CHUNK // width)
    return [slice(i, i + size) for i in range(0, rows, size)]
