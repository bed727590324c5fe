"""Distribute a module over ranks with torch's DistributedDataParallel (DDP), exactly and without waits for a GPU."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed

_TIMED_BY_DDP = 10  # steps


def wrap_in_ddp(bare: nn.Module, distributed: Distributed) -> nn.Module:
    """Return the module in DDP, whose buckets of gradients do not change any more. All ranks call this together."""
    gpu = [distributed.device] if devices.is_gpu(distributed.device) else None
    # Running statistics are synchronised before scoring, not in each step. Torch has renamed the setting.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    settings = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
    network = DistributedDataParallel(bare, device_ids=gpu, gradient_as_bucket_view=True, **settings)  # type: ignore[arg-type]
    # DDP times its first steps and then every 100th, for which it waits for the GPU. torch has no public setting.
    network._set_ddp_runtime_logging_sample_rate(2**31 - 1)
    _settle_buckets(network, distributed.device)
    return network


def _settle_buckets(network: DistributedDataParallel, device: torch.device) -> None:
    """Make DDP choose its buckets before the first step, so that a resumed run is bit-identical. All ranks call this.

    DDP reduces its first backward pass in one bucket and regroups the gradients before its second forward pass, in the
    order in which they became ready. A ring all-reduce sums the ranks' values in an order that depends on a gradient's
    position in its bucket, and NCCL chooses its algorithm by the bucket's size. With more than two ranks, the first
    step after a start would therefore round differently from the same step of an uninterrupted run.

    A backward pass through a sum of all weights forces the regrouping: it draws no random numbers and changes no
    running statistics. Gradients become ready from the last parameter to the first, nearly as in the network, so
    communication still overlaps with the backward pass. The network's own order would depend on the first batch: an
    incomplete one does not run compiled code.

    On a GPU there are as many such passes as DDP times by events, which no CUDA graph can hold.
    """
    bare = network.module
    bare.forward = lambda _: torch.stack(
        [weights.sum() for weights in bare.parameters() if weights.requires_grad]
    ).sum()
    try:
        for _ in range(_TIMED_BY_DDP + 1 if devices.is_gpu(device) else 1):
            network(torch.zeros((), device=device)).backward()
    finally:
        del bare.forward  # restores the method of the class
    network.zero_grad(set_to_none=True)
