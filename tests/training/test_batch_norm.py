"""Synchronised batch norm: two ranks compute what one process computes from the whole batch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from training_runs import spawn

from hpc_tumor.training.batch_norm import SyncBatchNorm, synchronise_batch_norm
from hpc_tumor.training.distributed import Distributed

CHANNELS = 5
SHARES = (slice(0, 1), slice(1, 7))  # of a batch: a filler sample alone beside a larger share
# Largest error relative to the largest value, against one process in float64: some units in the last place, and more
# where the mean is 30 times the standard deviation.
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 5e-3}


def a_layer() -> nn.BatchNorm2d:
    """Return a layer whose weights and running statistics are not the initial ones."""
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(CHANNELS)
    with torch.no_grad():
        for values in (layer.weight, layer.bias, layer.running_mean):
            values.normal_()
        layer.running_var.uniform_(1, 2)
    return layer


def synchronised(layer: nn.BatchNorm2d) -> nn.Module:
    network = nn.Sequential(copy.deepcopy(layer))
    synchronise_batch_norm(network)
    return network


def a_batch(offset: float, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return inputs of mean `offset` and standard deviation 3, and the gradients of the outputs."""
    torch.manual_seed(2)
    images = 3 * torch.randn(7, CHANNELS, 6, 4, dtype=torch.float64) + offset
    return images.to(kind), torch.randn(7, CHANNELS, 6, 4, dtype=torch.float64).to(kind)


def close(result: Tensor, expected: Tensor, rounding: float, what: str) -> None:
    error = (result.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error < rounding, f"{what}: {error:.1e}"


def whole_batch(images: Tensor, gradients: Tensor) -> tuple[nn.BatchNorm2d, Tensor, Tensor]:
    """Return a layer, its outputs and the inputs' gradients of one process in float64."""
    layer, inputs = a_layer().double(), images.double().clone().requires_grad_()
    outputs = layer(inputs)
    outputs.backward(gradients.double())
    assert inputs.grad is not None
    return layer, outputs.detach(), inputs.grad


def compare(distributed: Distributed, kind: torch.dtype, offset: float, layout: torch.memory_format) -> None:
    images, gradients = a_batch(offset, kind)
    layer, outputs, of_inputs = whole_batch(images, gradients)
    own, rounding = SHARES[distributed.rank], ROUNDING[kind]
    network = synchronised(a_layer().to(torch.promote_types(kind, torch.float32)))
    inputs = images[own].to(memory_format=layout).clone().requires_grad_()
    result = network(inputs)
    result.backward(gradients[own].to(memory_format=layout))
    assert result.dtype == kind
    assert result.is_contiguous(memory_format=layout)
    assert inputs.grad is not None
    close(result, outputs[own], rounding, "outputs")
    close(inputs.grad, of_inputs[own], rounding, "gradients of the inputs")
    exact = min(rounding, ROUNDING[torch.float32])  # what stays in float32
    for name, value in network[0].named_parameters():
        assert value.grad is not None
        close(distributed.sum(value.grad), layer.get_parameter(name).grad, exact, f"gradient of {name}")
    for name, value in network[0].named_buffers():
        close(value, layer.get_buffer(name), exact, name)
        own_value = value.clone()
        distributed.broadcast(value)
        assert torch.equal(own_value, value), f"{name} differs between the ranks"


def compare_all(distributed: Distributed) -> None:
    for kind in ROUNDING:
        for offset in (0.0, 100.0):
            for layout in (torch.contiguous_format, torch.channels_last):
                compare(distributed, kind, offset, layout)


@pytest.mark.slow
def test_two_ranks_equal_one_process() -> None:
    spawn(compare_all, 2)


def compiled_as_one_graph(distributed: Distributed) -> None:
    images, gradients = a_batch(0, torch.float64)
    layer, outputs, of_inputs = whole_batch(images, gradients)
    network = synchronised(a_layer().double())
    inputs = images[SHARES[distributed.rank]].clone().requires_grad_()
    result = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)(inputs)
    result.backward(gradients[SHARES[distributed.rank]])
    assert inputs.grad is not None
    close(result, outputs[SHARES[distributed.rank]], ROUNDING[torch.float64], "outputs")
    close(inputs.grad, of_inputs[SHARES[distributed.rank]], ROUNDING[torch.float64], "gradients of the inputs")
    close(network[0].running_var, layer.running_var, ROUNDING[torch.float64], "running variance")


@pytest.mark.slow
def test_compiled_it_is_one_graph() -> None:
    spawn(compiled_as_one_graph, 2)


def test_parameters_buffers_and_evaluation_are_those_of_the_layer_it_replaces() -> None:
    layer = a_layer().eval()
    network = synchronised(layer)
    images, _ = a_batch(0, torch.float32)
    assert torch.equal(network(images), layer(images))
    assert list(network[0].state_dict()) == list(layer.state_dict())
    again = a_layer()
    again.load_state_dict(network[0].state_dict())
    assert torch.equal(again.eval()(images), layer(images))


def test_layers_of_any_dimension_are_replaced_and_others_stay() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm3d(2), nn.LayerNorm(2), nn.Conv2d(2, 2, 1))
    synchronise_batch_norm(network)
    assert [isinstance(layer, SyncBatchNorm) for layer in network] == [True, True, False, False]


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_a_layer_that_it_cannot_replace_is_refused(options: dict[str, bool | None]) -> None:
    with pytest.raises(ValueError, match="norm needs weights, running statistics and a momentum"):
        synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(2, **options)))  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares the kernels of a GPU")
@pytest.mark.parametrize("kind", ROUNDING)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gpu_computes_what_one_process_computes(
    tmp_path: Path, kind: torch.dtype, layout: torch.memory_format
) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    try:
        images, gradients = a_batch(100, kind)
        layer, outputs, of_inputs = whole_batch(images, gradients)
        network = synchronised(a_layer().to("cuda", torch.promote_types(kind, torch.float32)))
        inputs = images.to("cuda").to(memory_format=layout).clone().requires_grad_()
        result = network(inputs)
        result.backward(gradients.to("cuda").to(memory_format=layout))
        assert inputs.grad is not None
        close(result.cpu(), outputs, ROUNDING[kind], "outputs")
        close(inputs.grad.cpu(), of_inputs, ROUNDING[kind], "gradients of the inputs")
        close(network[0].running_var.cpu(), layer.running_var, ROUNDING[torch.float32], "running variance")
    finally:
        dist.destroy_process_group()
