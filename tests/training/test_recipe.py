"""Losses, schedules and the choice of precision."""

import math

import pytest
import torch
from torch import nn

from hpc_tumor.config import Recipe
from hpc_tumor.errors import UsageError
from hpc_tumor.training import recipe


def test_bce_is_the_mean_over_pixels_and_maps_of_each_slice() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[-1.0, 0.5]], [[3.0, -3.0]]]])
    labels = torch.tensor([[[1, 3]]], dtype=torch.uint8)
    expected = 0.0
    for channel, label in enumerate((1, 2, 3)):
        for x in range(2):
            chance = 1 / (1 + math.exp(-logits[0, channel, 0, x].item()))
            expected -= math.log(chance if labels[0, 0, x] == label else 1 - chance) / 6
    assert recipe.bce(logits, labels).tolist() == pytest.approx([expected], rel=1e-5)


def test_losses_are_per_sample() -> None:
    assert recipe.cross_entropy(torch.randn(5, 4), torch.arange(5) % 4).shape == (5,)
    assert recipe.bce(torch.randn(5, 3, 4, 4), torch.zeros(5, 4, 4, dtype=torch.uint8)).shape == (5,)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "none"}, [1e-4] * 25),
        ({"schedule": "step", "step_epochs": 10, "gamma": 0.5}, [1e-4] * 10 + [5e-5] * 10 + [2.5e-5] * 5),
        ({"schedule": "exponential", "gamma": 0.9}, [1e-4 * 0.9**epoch for epoch in range(25)]),
    ],
)
def test_schedules_of_the_published_recipes(settings: dict, rates: list[float]) -> None:
    chosen = Recipe(learning_rate=1e-4, **settings)
    optimizer = recipe.build_optimizer(nn.Linear(2, 2).parameters(), chosen)
    schedule = recipe.build_schedule(optimizer, chosen)
    seen = []
    for _ in rates:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx(rates)


def test_fused_adam_steps_like_the_textbook_with_l2() -> None:
    weights = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = recipe.build_optimizer([weights], Recipe(learning_rate=0.1, weight_decay=0.5))
    weights.grad = torch.tensor([0.3, 0.3])
    optimizer.step()
    # After bias correction Adam's first step is the sign of (gradient + decay × weight) times the rate.
    assert weights.tolist() == pytest.approx([0.9, -1.9], abs=1e-4)


def test_precision_is_what_the_hardware_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_cpu_features", lambda: {"avx2"})
    assert recipe.choose_precision("auto", torch.device("cpu")).name == "float32"
    with pytest.raises(UsageError, match="does not compute in it"):
        recipe.choose_precision("bfloat16", torch.device("cpu"))
    monkeypatch.setattr(recipe, "_cpu_features", lambda: {"avx512_bf16"})
    assert recipe.choose_precision("auto", torch.device("cpu")).name == "bfloat16"
    assert recipe.choose_precision("float32", torch.device("cpu")).name == "float32"


@pytest.mark.parametrize(
    ("capability", "name", "scaled"),
    [((7, 0), "float16", True), ((8, 0), "bfloat16", False), ((9, 0), "bfloat16", False), ((6, 1), "float32", False)],
)
def test_precision_of_gpus(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str, scaled: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen = recipe.choose_precision("auto", torch.device("cuda", 0))
    assert chosen.name == name
    assert (chosen.name == "float16") == scaled
