"""Batch norm over the samples of all ranks, which never waits for a GPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpc_tumor.models.layers.bottleneck import AcrossRanks, fused_backward, fused_forward
from hpc_tumor.system import devices


class SyncBatchNorm(AcrossRanks, _BatchNorm):
    """Batch norm (Ioffe & Szegedy 2015) over the samples of all ranks: `(N, C, …)` → the same.

    torch's layer looks in every forward pass for ranks without a sample, for which the host waits for the GPU. Here
    every rank has one (`Batch.counted`), and each pass is one all-reduce. Forward, the ranks only exchange their means
    and variances, which are merged in the order of the ranks: the result does not depend on NCCL's algorithm, and loses
    no digits where the mean is large.

    On a GPU the layer runs the kernels of torch's. On a CPU, and compiled, it computes the same from formulas, which
    Inductor fuses. Parameters, buffers and evaluation are those of `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        x = _dense(x)
        with torch.no_grad():
            mean, inverse, counts = self.statistics(x.detach())
        result: Tensor = _Normalise.apply(x, self.weight, self.bias, mean, inverse, counts, self.eps)
        return result

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and 1 / standard deviation `(C,)` over all ranks, and their counts; update the running ones."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        count = x.numel() // x.shape[1]
        if _has_kernels(x):
            spread: Tensor
            mean, spread = torch.batch_norm_stats(x, self.eps)
        else:
            spread, mean = torch.var_mean(_precise(x), _axes(x), correction=0)
        means, spreads, counts = _gather(torch.cat([mean, spread, mean.new_full((1,), count)])).split(
            [len(mean), len(mean), 1], 1
        )
        if _has_kernels(x):
            mean, inverse = torch.batch_norm_gather_stats_with_counts(
                x, means, spreads, self.running_mean, self.running_var, self.momentum, self.eps, counts.flatten()
            )
            return mean, inverse, counts.to(torch.int32)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (spreads + (means - mean).square())).sum(0) / total
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (total / (total - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, (variance + self.eps).rsqrt(), counts

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch norm needs inputs (N, C, …), but got the shape {tuple(x.shape)}")


def synchronise_batch_norm(network: nn.Module) -> None:
    """Replace every batch norm of the network by a `SyncBatchNorm` with the same parameters and buffers, in place.

    Raises ValueError for a layer without weights, running statistics or momentum.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm):
            if not layer.affine or not layer.track_running_stats or layer.momentum is None:
                raise ValueError(f"{name}: synchronised batch norm needs weights, running statistics and a momentum")
            layer.__class__ = SyncBatchNorm


class _Normalise(torch.autograd.Function):
    """Normalisation with statistics of all ranks, whose gradient includes that of the statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, counts: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inverse, counts)
        if _has_kernels(x):
            return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)
        return ((x - _row(mean, x)) * _row(inverse * weight, x) + _row(bias, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, counts = ctx.saved_tensors
        gradient = _dense(gradient)
        if _has_kernels(x):
            sums, products, of_weight, of_bias = torch.batch_norm_backward_reduce(
                gradient, x, mean, inverse, weight, True, True, True
            )
        else:
            centred = x - _row(mean, x)
            sums, products = _precise(gradient).sum(_axes(x)), (gradient * centred).sum(_axes(x))
            of_weight, of_bias = products * inverse, sums
        both = torch.cat([sums, products])
        dist.all_reduce(both)  # gradients of weight and bias stay the rank's own: DDP averages them
        sums, products = both.chunk(2)
        if _has_kernels(x):
            of_x = torch.batch_norm_backward_elemt(gradient, x, mean, inverse, weight, sums, products, counts)
        else:
            total = counts.sum()
            slope = _row(inverse.square() * products / total, x)
            of_x = (gradient - _row(sums / total, x) - centred * slope) * _row(inverse * weight, x)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None, None, None


class _Fused(torch.autograd.Function):
    """Batch norm with statistics of all ranks, and the pointwise layers that follow it."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        return fused_forward(ctx, *arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return fused_backward(ctx, gradient, _means_of_all)


def _means_of_all(sums: Tensor, _: Tensor, counts: Tensor | None) -> Tensor:
    assert counts is not None
    total = sums.clone()  # gradients of weight and bias stay the rank's own: DDP averages them
    dist.all_reduce(total)
    return total / counts.sum()


SyncBatchNorm.fused = _Fused


def _has_kernels(x: Tensor) -> bool:
    """Return True where torch's kernels for synchronised batch norm serve: on GPUs, unless compiled."""
    return devices.is_gpu(x.device) and not torch.compiler.is_compiling()


def _gather(values: Tensor) -> Tensor:
    """Return the `(n,)` values of every rank as `(ranks, n)`."""
    gathered = values.new_zeros(dist.get_world_size(), len(values))
    gathered[dist.get_rank()] = values
    dist.all_reduce(gathered)  # adds zeros only; torch has renamed the all-gather into one tensor
    return gathered


def _dense(x: Tensor) -> Tensor:
    """Return `x` in a memory layout that the kernels take: contiguous or channels-last."""
    return x if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _axes(x: Tensor) -> tuple[int, ...]:
    return 0, *range(2, x.dim())


def _row(values: Tensor, x: Tensor) -> Tensor:
    """Return `(C,)` values in the shape that is broadcast over `(N, C, …)`."""
    return values.view(-1, *(1,) * (x.dim() - 2))
