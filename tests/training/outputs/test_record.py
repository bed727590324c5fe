"""GFLOP of a sample, against sums by hand over the shapes of layers."""

from typing import Any

import pytest
import torch
from torch import nn

from hpc_tumor.models import MODELS, build_model
from hpc_tumor.training.batch_norm import synchronise_batch_norm
from hpc_tumor.training.outputs.record import forward_gflop


def test_a_known_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 10 * 12, 5))
    convolution, linear = 10 * 12 * 8 * (3 * 3 * 3), 8 * 10 * 12 * 5
    assert forward_gflop(network, 3, (10, 12)) == 2 * (convolution + linear) / 1e9


def by_hand(network: nn.Module, channels: int, side: int) -> int:
    """Two for each multiply-add of the convolutions and dense layers in a real forward pass, without gradients."""
    counts = []

    def count(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if isinstance(module, nn.Linear):
            counts.append(2 * output.numel() * module.in_features)
        else:
            kernel = module.kernel_size[0] * module.kernel_size[1]
            counts.append(2 * output.numel() * kernel * module.in_channels // module.groups)

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(count)
    network.eval()(torch.rand(1, channels, side, side))
    assert len(counts) == len(layers)
    return sum(counts)


@pytest.mark.parametrize("model", MODELS)
def test_every_network_computes_what_its_layers_are(model: str) -> None:
    spec = MODELS[model]
    side = 80 if spec.task == "classification" else 48
    network = build_model(model, image_size=side, filters=4 if spec.task == "segmentation" else None)
    expected = by_hand(network, spec.in_channels, side)
    if model == "vit":  # and its attention: weights from queries and keys, and their mean of values
        tokens = (side // 16) ** 2 + 1
        expected += 10 * 2 * (2 * tokens**2 * 512)
    assert forward_gflop(network, spec.in_channels, (side, side)) == pytest.approx(expected / 1e9, rel=1e-12)


def test_the_published_cnn() -> None:
    """128 pixels → 30, pooled to 15 → 11, pooled to 5 → 5 → 5, pooled to 2."""
    convolutions = (
        30**2 * 96 * (9 * 9 * 3) + 11**2 * 256 * (5 * 5 * 96) + 5**2 * 384 * (3 * 3 * 256) + 5**2 * 256 * (3 * 3 * 384)
    )
    dense = 2 * 2 * 256 * 512 + 512 * 128 + 128 * 4
    assert forward_gflop(build_model("cnn"), 3, (128, 128)) == 2 * (convolutions + dense) / 1e9


def test_counting_changes_nothing() -> None:
    network = build_model("cnn").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    assert forward_gflop(network, 3, (128, 128))
    assert network.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def test_batch_norm_of_several_gpus_is_counted_on_one() -> None:
    network = build_model("cnn")
    alone = forward_gflop(network, 3, (128, 128))
    assert alone is not None
    synchronise_batch_norm(network)
    assert forward_gflop(network, 3, (128, 128)) == alone


def test_what_cannot_be_counted_is_not() -> None:
    network = build_model("cnn").train()
    assert forward_gflop(network, 1, (128, 128)) is None
    assert network.training
