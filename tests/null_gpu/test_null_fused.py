"""Fused layers on the null GPU: their kernels compile for old and new GPUs, eagerly and in compiled networks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from child import watched
from processes import NullGpu
from torch import Tensor, nn

from hpc_tumor.models.layers import fused
from hpc_tumor.models.layers.fast import FirstConv2d

KERNELS = {
    "stem": 1, "stem_backward": 1, "bias_relu": 1, "relu_backward": 1, "bias_relu_pool": 1, "pool_backward": 1,
    "bias_relu_skip_pool": 1, "skip_pool_backward": 1, "upsample": 3, "upsample_backward": 3,
}  # fmt: skip


class Small(nn.Module):
    """Every fused layer once."""

    def __init__(self) -> None:
        super().__init__()
        first = FirstConv2d(3, 32, 3, padding=1)  # whose filters are summed for grey images
        second, third, fourth = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))
        self.pooled = fused.Convolutions(first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2), third, nn.ReLU())
        self.skipped = fused.Convolutions(fourth, nn.ReLU())
        self.linear = fused.Linear(64 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        skip, low = self.skipped(self.pooled(x), pool=True)
        added = fused.upsample_add(low, skip)
        joined = fused.upsample_cat(low, added) + fused.upsample(low).repeat(1, 2, 1, 1)
        return self.linear(joined.flatten(1))


def step(kind: torch.dtype = torch.bfloat16, compiled: bool = False, **changes: bool) -> Counter[str]:
    """Take steps of a small network; return our kernels in the last by name."""
    layout = torch.contiguous_format if changes.get("contiguous") else torch.channels_last
    network = Small().cuda().to(memory_format=layout)
    if changes.get("hooked"):
        for layer in network.pooled:
            layer.register_forward_hook(lambda *_: None)
    torch.use_deterministic_algorithms(changes.get("deterministic", False))
    run = torch.compile(network, fullgraph=True, dynamic=False) if compiled else network
    x = torch.zeros(2, 1, 8, 8, device="cuda").contiguous(memory_format=layout).expand(-1, 3, -1, -1)
    for _ in range(2):
        with watched() as watch:
            with torch.autocast("cuda", kind, enabled=kind != torch.float32):
                result = run(x)
            result.float().sum().backward()
    assert watch.faults() == {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.stride() == parameter.stride(), name  # as DDP wants
    return Counter({name: number for name, number in watch.by_kernel.items() if name in KERNELS})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "capability"),
    [(torch.float16, 7.5), (torch.float32, 8.0), (torch.bfloat16, 8.0), (torch.bfloat16, 9.0), (torch.float16, 9.0)],
)
def test_each_layer_is_one_kernel(kind: torch.dtype, capability: float, null_gpu: NullGpu) -> None:
    assert null_gpu.call(step, kind, capability=capability) == KERNELS


@pytest.mark.slow
def test_compiled_layers_are_the_same_kernels(null_gpu: NullGpu, tmp_path: Path) -> None:
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    assert null_gpu.call(step, torch.bfloat16, True, variables=variables) == KERNELS


def changed(name: str) -> Counter[str]:
    return step(**{name: True})


@pytest.mark.slow
def test_other_layouts_and_watched_layers_are_left_to_torch(null_gpu: NullGpu) -> None:
    assert null_gpu.call(changed, "contiguous") == {}
    others = {name: number for name, number in KERNELS.items() if "skip" in name or "upsample" in name}
    assert null_gpu.call(changed, "hooked") == others
    assert null_gpu.call(changed, "deterministic") == KERNELS


@pytest.mark.slow
def test_old_gpus_are_left_to_torch(null_gpu: NullGpu) -> None:
    assert null_gpu.call(step, torch.float16, capability=7.0) == {}
