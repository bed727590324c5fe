"""Kernels of inverted bottlenecks against torch's layers: Triton interprets them on the CPU, and compiles them."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpc_tumor.models.layers import bottleneck
from hpc_tumor.models.layers.blocks import encoder_block, inverted_bottleneck
from hpc_tumor.models.layers.kernels import bottleneck_operations
from hpc_tumor.system import devices
from hpc_tumor.training.batch_norm import synchronise_batch_norm

triton = pytest.importorskip("triton")
KERNELS = "hpc_tumor.models.layers.kernels.bottlenecks"
FLOAT32 = 2e-6  # largest error relative to the largest value: some roundings
SHAPES = [  # inner, hidden, outer, pixels: none fills its blocks
    (1, 4, 1, (1, 1, 3)), (4, 20, 8, (2, 9, 7)), (33, 70, 17, (1, 5, 31)), (16, 128, 48, (2, 8, 8)),
    (136, 150, 20, (1, 5, 7)), (20, 60, 140, (2, 4, 3)),
]  # fmt: skip


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., None]]:
    """Call a function where kernels run on CPU tensors: in a process that has Triton imported so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), use_true_bfloat16)
        pool.submit(int).result()
    with pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def use_true_bfloat16() -> None:
    """Let the interpreter, which multiplies bfloat16 as the integers that it stores, multiply the numbers."""
    import numpy as np
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    torch.set_num_threads(1)
    multiply = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype == bfloat16:
            a, b = (
                interpreter.TensorHandle((factor.data.astype(np.uint32) << 16).view(np.float32), float32)
                for factor in (a, b)
            )
        return multiply(self, a, b, *others)

    interpreter.InterpreterBuilder.create_dot = create_dot


def a_bottleneck(inner: int, hidden: int, outer: int) -> nn.Sequential:
    """Return layers with biases and running statistics that are not the initial ones."""
    torch.manual_seed(inner)
    layers = nn.Sequential(*inverted_bottleneck(inner, outer, hidden)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for values in (*(p for p in layers.parameters() if p.dim() == 1), layers[1].running_mean):
            values.normal_()
        layers[1].running_var.uniform_(1, 2)
    return layers


def fused(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Compute the layers as on a GPU."""
    with patch.object(bottleneck, "usable", lambda _: True), patch.object(devices, "capability", lambda _: (9, 0)):
        result: Tensor = bottleneck.Bottlenecks(*layers)(x)
        return result


def results(layers: nn.Sequential, function: Any, x: Tensor, kind: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return output, buffers and all gradients, computed in a type of autocast if given."""
    layers, x = copy.deepcopy(layers), x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", kind) if kind else nullcontext():
        output = function(layers, x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(7)).to(output.dtype))
    assert x.grad is not None
    gradients = {name: value.grad for name, value in layers.named_parameters() if value.grad is not None}
    assert all(value.grad is None or value.grad.stride() == value.stride() for value in layers.parameters())
    return {"output": output.detach(), "x": x.grad, **gradients, **dict(layers.named_buffers())}


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == exact.keys()
    largest = {name: exact[name].abs().max().clamp(min=1e-30) for name in exact}
    return {name: ((found[name].double() - exact[name]).abs().max() / largest[name]).item() for name in exact}


def an_image(channels: int, pixels: tuple[int, ...]) -> Tensor:
    n, *sides = pixels
    return (3 * torch.randn(n, channels, *sides) + 2).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("inner", "hidden", "outer", "pixels"), SHAPES)
def test_results_and_gradients_are_those_of_the_layers(
    interpreted: Callable[..., None], inner: int, hidden: int, outer: int, pixels: tuple[int, ...], training: bool
) -> None:
    interpreted(compare, inner, hidden, outer, pixels, training)


def compare(inner: int, hidden: int, outer: int, pixels: tuple[int, ...], training: bool) -> None:
    layers, x = a_bottleneck(inner, hidden, outer).train(training), an_image(inner, pixels)
    found = results(layers, fused, x)
    exact = results(layers.double(), lambda own, image: own(image), x.double())
    if training:  # batch norm subtracts this bias: the layers' gradient is rounding noise
        assert found.pop("0.bias").abs().max() < (1e-3 if max(inner, outer) > 128 else 1e-30)
        assert exact.pop("0.bias").abs().max() < 1e-3
    assert {name: error for name, error in errors(found, exact).items() if error > FLOAT32} == {}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_in_16_bits_they_are_as_close_as_the_layers(interpreted: Callable[..., None], kind: torch.dtype) -> None:
    interpreted(compare_in_16_bits, kind)


def compare_in_16_bits(kind: torch.dtype) -> None:
    layers, x = a_bottleneck(8, 40, 12), an_image(8, (2, 12, 9))
    exact = results(copy.deepcopy(layers).double(), lambda own, image: own(image), x.double())
    own = errors(results(layers, fused, x, kind), exact)
    plain = errors(results(layers, lambda own, image: own(image), x, kind), exact)
    # Triton's interpreter truncates to bfloat16, where GPUs and torch round; a unit near zero may be on another side.
    allowed = {name: 2 * plain[name] + 4 * torch.finfo(kind).eps for name in own.keys() - {"0.bias"}}
    assert {name: own[name] for name in allowed if own[name] > allowed[name]} == {}
    for name, value in results(layers, fused, x, kind).items():
        assert value.dtype == {"output": kind}.get(name, dict(layers.named_buffers()).get(name, x).dtype)


def test_two_ranks_compute_what_one_does(interpreted: Callable[..., None]) -> None:
    interpreted(compare_ranks)


def compare_ranks() -> None:
    """Give both ranks the same samples, so that the other rank's numbers are this one's."""
    layers, x, gradient = a_bottleneck(4, 20, 8), an_image(4, (2, 9, 7)), torch.randn(2, 8, 9, 7)
    one, both = copy.deepcopy(layers).double(), torch.cat([x, x]).double().requires_grad_()
    expected = one(both)
    expected.backward(torch.cat([gradient, gradient]).double())

    def all_reduce(values: Tensor) -> None:
        if values.dim() == 2:  # a row for each rank, filled by the ranks
            values[1] = values[0]
        else:
            values.mul_(2)

    synchronise_batch_norm(layers)
    x.requires_grad_()
    with (
        patch.object(dist, "get_world_size", lambda: 2), patch.object(dist, "get_rank", lambda: 0),
        patch.object(dist, "all_reduce", all_reduce),
    ):  # fmt: skip
        output = fused(layers, x)
        output.backward(gradient)
    assert x.grad is not None
    assert both.grad is not None
    found, exact = {"output": output.detach(), "x": x.grad}, {"output": expected[:2].detach(), "x": both.grad[:2]}
    for (name, own), other in zip(layers.named_parameters(), one.parameters(), strict=True):
        if name != "0.bias":  # rounding noise
            assert own.grad is not None
            assert other.grad is not None
            found[name], exact[name] = 2 * own.grad, other.grad  # DDP averages over ranks
    assert (
        max(errors({**found, **dict(layers.named_buffers())}, {**exact, **dict(one.named_buffers())}).values()) < 2e-6
    )


def test_a_value_that_is_not_a_number_is_not_lost(interpreted: Callable[..., None]) -> None:
    interpreted(spoil)


def spoil() -> None:
    layers, x = a_bottleneck(4, 20, 4).eval(), an_image(4, (1, 3, 3))
    x[0, 2, 1, 1] = torch.nan
    found, expected = (results(layers, function, x) for function in (fused, lambda own, image: own(image)))
    assert torch.equal(found["output"].isnan(), expected["output"].isnan())
    spoilt = [name for name in expected if expected[name].isnan().any()]
    assert {"output", "0.weight", "1.weight", "2.weight", "4.weight"} <= set(spoilt)
    assert all(found[name].isnan().any() for name in spoilt)


def test_what_needs_no_gradient_gets_none(interpreted: Callable[..., None]) -> None:
    interpreted(freeze)


def freeze() -> None:
    layers, x = a_bottleneck(4, 16, 4), an_image(4, (1, 6, 6))
    expected = results(layers, fused, x)
    for frozen in ("0.weight", "1.weight", "2.bias", "4.weight"):
        layers.get_parameter(frozen).requires_grad_(False)
        found = results(layers, fused, x)
        assert frozen not in found
        assert all(torch.equal(found[name], expected[name]) for name in found)
    with torch.no_grad():
        assert torch.equal(fused(layers, x), expected["output"])


def test_sums_over_many_programs_have_the_same_bits_in_every_run(interpreted: Callable[..., None]) -> None:
    interpreted(repeat)


def repeat() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bottleneck_operations, "sizes", small_blocks(bottleneck_operations.sizes))
        repeat_with_small_blocks()


def repeat_with_small_blocks() -> None:
    layers, x = a_bottleneck(4, 20, 4), an_image(4, (1, 9, 13))  # 8 blocks of pixels, 2 of hidden units
    found, again = (results(layers, fused, x) for _ in range(2))
    assert all(torch.equal(found[name], again[name]) for name in found)
    exact = results(layers.double(), lambda own, image: own(image), x.double())
    close = errors(found, exact)
    del close["0.bias"]
    assert max(close.values()) < FLOAT32


def small_blocks(sizes: Any) -> Any:
    return lambda *arguments: {**sizes(*arguments), "rows": 16, "units": 16}


def test_on_a_cpu_the_layers_run_and_keep_their_bits_and_names() -> None:
    torch.manual_seed(0)
    block, x = encoder_block(4, 8), an_image(4, (2, 16, 16))
    plain = nn.Sequential(*copy.deepcopy(block))
    assert list(block.state_dict()) == list(plain.state_dict())
    assert torch.equal(block(x), plain(x))


# ---- compiled


POINTERS = {"x", "gradient", "output", "of_normal", "w1", "w2"}  # of the image's type; others of float32
VECTORS = {"mean", "inverse", "scale", "shift", "b1", "b2", "parts"}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("width", "type_", "item"), [(32, "bf16", 2), (128, "bf16", 2), (128, "fp32", 4)])
def test_kernels_fit_into_shared_memory_and_registers(
    width: int, type_: str, item: int, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    out = max(width, 32)
    for name in ("forward", "input_gradient", "weight_gradients"):
        compiled = compile_kernel(name, bottleneck_operations.sizes(width, 4 * out, out, item), type_, capability)
        assert compiled.metadata.shared <= 96 << 10, name
        (tmp_path / "kernel.ptx").write_text(compiled.asm["ptx"])
        assert spilled(tmp_path / "kernel.ptx", capability) <= 256, name


def compile_kernel(name: str, constants: dict[str, Any], type_: str, capability: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(KERNELS), name)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages")}
    signature, values, aligned = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(place,)] = "constexpr", constants[argument]
        elif argument in POINTERS | VECTORS:
            signature[argument] = f"*{type_ if argument in POINTERS else 'fp32'}"
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = "i32"
    source = ASTSource(kernel, signature, values, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def spilled(ptx: Path, capability: int) -> int:
    """Return the bytes that each thread stores for want of registers."""
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not assembler.exists():
        pytest.skip("this triton has no assembler of its own")
    target = "sm_90a" if capability == 90 else f"sm_{capability}"
    command = [str(assembler), "-v", "--gpu-name", target, str(ptx), "-o", str(ptx.with_suffix(".cubin"))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (line,) = [line for line in said.splitlines() if "spill stores" in line]
    return int(line.partition(" bytes spill stores")[0].rpartition(",")[2])
