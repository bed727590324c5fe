"""Copies of results to the host's memory that do not wait for a GPU until they are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpc_tumor.system import devices


@dataclass(frozen=True)
class HostCopy:
    """A tensor in the host's memory that may still be on its way from a GPU; on a CPU, the tensor itself."""

    tensor: Tensor
    arrived: torch.Event | None = None

    def wait(self) -> Tensor:
        """Return the tensor once it has arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor


def copy_to_host(tensor: Tensor) -> HostCopy:
    """Queue a copy of `tensor` to pinned memory: a copy to pageable memory would wait for the GPU's queue."""
    if not devices.is_gpu(tensor.device):
        return HostCopy(tensor)
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
    arrived = torch.Event()
    arrived.record()
    return HostCopy(copy, arrived)
