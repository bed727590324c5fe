"""Bytes that training steps read and write: counted as by hand, and within their budget."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from budgets import COMPILED_MEGABYTES, MEGABYTES, check_budget
from processes import NullGpu
from torch import Tensor, nn
from torch.nn import functional as F

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
from gpu_report.counting import BytesMode, Kernel, counted_by_inductor  # noqa: E402
from gpu_report.job import Job  # noqa: E402
from roofline import count, make_stores  # noqa: E402

from hpc_tumor.models import MODELS  # noqa: E402

FASTEST = "cnn"  # to compile
COMPILED = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}

# A network small enough to be counted by hand: images (2, 3, 8, 8) in float32, channels-last; a convolution 3 × 3 to
# four channels with a bias, ReLU, a linear layer of 256 to eight values, squared differences. Bytes of its tensors:
X, W, B, Y = 4 * 2 * 3 * 8 * 8, 4 * 4 * 3 * 3 * 3, 4 * 4, 4 * 2 * 4 * 8 * 8
ROWS, LINEAR, LINEAR_BIAS, OUT, ONE = Y, 4 * 8 * 256, 4 * 8, 4 * 2 * 8, 4
MASK = Y // 4  # bool: where ReLU lets gradients through
EAGER = {
    "convolution": X + W + B + Y,
    "bias of a convolution": (Y + Y) + Y,  # added; its gradient summed
    "relu": Y + Y,
    "clone": Y + ROWS,  # from channels-last to rows
    "addmm": LINEAR_BIAS + ROWS + LINEAR + OUT,
    "mse_loss": OUT + OUT + ONE,
    "ones_like": ONE + ONE,  # the gradient of the loss
    "mse_loss_backward": ONE + OUT + OUT + OUT,
    "mm": (OUT + LINEAR + ROWS) + (OUT + ROWS + LINEAR),  # gradients of rows and weights
    "sum": OUT + LINEAR_BIAS,
    "threshold_backward": ROWS + Y + Y,
    "convolution_backward": Y + X + W + (W + B),
}
# Inductor leaves matrix products and convolutions without bias to the libraries, and fuses the rest.
LIBRARIES = {
    "convolution": X + W + Y,
    "ones_like": ONE + ONE,
    "mm": (ROWS + LINEAR + OUT) + EAGER["mm"],
    "convolution_backward": Y + X + W + W,
}
GENERATED = (
    Y + B + ROWS + MASK,  # bias, ReLU, copy to rows
    OUT + LINEAR_BIAS + OUT + OUT + (ONE + ONE),  # loss; Inductor takes its sum to be read, too
    ONE + OUT + OUT,  # gradient of the loss
    OUT + LINEAR_BIAS,  # gradient of the bias
    ROWS + MASK + Y + B,  # gradient of ReLU and of the bias
)


def count_small(compiled: bool) -> list[Kernel]:
    """Return the kernels of a step of the small network."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8)).cuda()
    network.to(memory_format=torch.channels_last)
    images = torch.zeros(2, 3, 8, 8, device="cuda").to(memory_format=torch.channels_last)
    right = torch.zeros(2, 8, device="cuda")

    def loss_of(images: Tensor, right: Tensor) -> Tensor:
        return F.mse_loss(network(images), right)

    with counted_by_inductor():
        step = torch.compile(loss_of, dynamic=False) if compiled else loss_of
        step(images, right).backward()
    network.zero_grad(set_to_none=True)
    with BytesMode(torch.device("cuda")) as mode:
        step(images, right).backward()
    return mode.kernels


def sums(kernels: list[Kernel]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for kernel in kernels:
        found[kernel.name] += kernel.bytes
    return dict(found)


@pytest.mark.slow
def test_a_step_is_counted_as_by_hand(null_gpu: NullGpu) -> None:
    kernels = null_gpu.call(count_small, False)
    assert sums(kernels) == EAGER
    products = 2 * (2 * 8 * 256)
    convolution = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    assert sum(kernel.flop for kernel in kernels) == 3 * products + 2 * convolution
    assert not any(kernel.grouped for kernel in kernels)


@pytest.mark.slow
def test_a_compiled_step_is_counted_as_by_hand(null_gpu: NullGpu, tmp_path: Path) -> None:
    variables = {**COMPILED, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    kernels = null_gpu.call(count_small, True, variables=variables)
    assert sums([kernel for kernel in kernels if not kernel.generated]) == LIBRARIES
    assert sorted(kernel.bytes for kernel in kernels if kernel.generated) == sorted(GENERATED)


def count_custom() -> list[Kernel]:
    """Return the kernels of an operation from outside torch: two of Triton, with memory between, and one of torch."""
    import triton_operation

    x = torch.zeros(1000, device="cuda")
    triton_operation.smooth(x)  # compiles
    with BytesMode(torch.device("cuda")) as mode:
        triton_operation.smooth(x)
    return mode.kernels


@pytest.mark.slow
def test_kernels_of_triton_are_counted_once_with_their_tensors(null_gpu: NullGpu) -> None:
    size = 4 * 1000
    assert [(kernel.name, kernel.bytes, kernel.generated) for kernel in null_gpu.call(count_custom)] == [
        ("scale", 2 * size, True), ("scale", 2 * size, True), ("relu", 2 * size, False),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Synthetic stores of the published sizes."""
    folder = tmp_path_factory.mktemp("published")
    make_stores(folder)
    return Job("cuda:0", False, str(folder), ("bfloat16",))


@pytest.mark.slow
@pytest.mark.parametrize("network", MODELS)
def test_steps_stay_within_their_bytes(network: str, null_gpu: NullGpu, published: Job) -> None:
    found = null_gpu.call(count, network, "eager", published, True)
    assert found.batch == (32 if MODELS[network].task == "segmentation" else 64)
    check_budget(f"MEGABYTES[{network!r}]", found.megabytes, MEGABYTES[network], "megabytes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=() if name == FASTEST else pytest.mark.campaign) for name in COMPILED_MEGABYTES],
)
def test_compiled_steps_stay_within_their_bytes(
    network: str, null_gpu: NullGpu, published: Job, tmp_path: Path
) -> None:
    variables = {**COMPILED, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = null_gpu.call(count, network, "compiled", published, True, variables=variables, timeout=550)
    assert any(kernel.generated for kernel in found.step)
    check_budget(f"COMPILED_MEGABYTES[{network!r}]", found.megabytes, COMPILED_MEGABYTES[network], "megabytes")


@pytest.mark.slow
def test_the_command_prints_what_it_counts_and_estimates(null_gpu: NullGpu, tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "roofline.py"), "--networks", "alexnet", "--json", str(tmp_path / "counts")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.startswith("Counted on the null GPU, which computes nothing, ")
    values = json.loads((tmp_path / "counts").read_text())
    (step,) = values["steps"]
    assert step["bytes"] == sum(kernel["bytes"] for kernel in step["step"]) <= 10**6 * MEGABYTES["alexnet"]
    assert f"{step['bytes'] / 1e9:.2f}" in text
    assert sum(step["estimate"]["run"].values()) < values["seconds"]
    assert f"all 1: {values['seconds'] / 60:.1f} minutes" in text
