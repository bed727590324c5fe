"""The rate of every step, against torch's own schedulers and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from hpc_tumor.config import Recipe
from hpc_tumor.training.recipe import learning_rate

STEPS = 7


def recipe_of(schedule: str, **settings: Any) -> Recipe:
    return Recipe(schedule=schedule, **{"epochs": 6, "learning_rate": 0.2, **settings})


def rates(recipe: Recipe, steps: int = STEPS) -> list[float]:
    return [learning_rate(recipe, epoch, step, steps) for epoch in range(recipe.epochs) for step in range(steps)]


def torch_rates(make: Callable[[torch.optim.Optimizer], LRScheduler], count: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.2)
    schedule, found = make(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("recipe", "make"),
    [
        (recipe_of("step", step_epochs=2, gamma=0.3), lambda made: lr_scheduler.StepLR(made, 2, 0.3)),
        (recipe_of("exponential", gamma=0.9), lambda made: lr_scheduler.ExponentialLR(made, 0.9)),
        (recipe_of("none"), lambda made: lr_scheduler.ConstantLR(made, 1.0)),
    ],
)
def test_schedules_by_epoch_are_torchs(recipe: Recipe, make: Callable[..., LRScheduler]) -> None:
    expected = torch_rates(make, recipe.epochs)
    assert rates(recipe) == pytest.approx([rate for rate in expected for _ in range(STEPS)])


@pytest.mark.parametrize(
    ("recipe", "make"),
    [
        (recipe_of("cosine"), lambda made: lr_scheduler.CosineAnnealingLR(made, 6 * STEPS)),
        (recipe_of("polynomial", power=0.9), lambda made: lr_scheduler.PolynomialLR(made, 6 * STEPS, 0.9)),
        (recipe_of("polynomial", power=2), lambda made: lr_scheduler.PolynomialLR(made, 6 * STEPS, 2.0)),
    ],
)
def test_schedules_by_step_are_torchs(recipe: Recipe, make: Callable[..., LRScheduler]) -> None:
    assert rates(recipe) == pytest.approx(torch_rates(make, 6 * STEPS), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "polynomial"])
def test_rate_after_the_warm_up_is_that_of_a_shorter_run(schedule: str) -> None:
    warmed = rates(recipe_of(schedule, epochs=8, warmup_epochs=2))
    assert warmed[2 * STEPS :] == pytest.approx(rates(recipe_of(schedule, epochs=6)))


def test_warm_up_by_hand() -> None:
    found = rates(recipe_of("cosine", epochs=3, warmup_epochs=1), steps=4)
    assert found[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])  # quarters
    assert found[4] == 0.2  # the cosine begins at its top
    assert found[8] == pytest.approx(0.1)  # halfway through the eight steps that remain
    assert found[11] == pytest.approx(0.2 * 0.0380602337)  # (1 + cos(7/8 π)) / 2


def test_polynomial_by_hand() -> None:
    found = rates(recipe_of("polynomial", epochs=2, power=2), steps=4)
    assert found == pytest.approx([0.2 * (left / 8) ** 2 for left in range(8, 0, -1)])


@pytest.mark.parametrize("schedule", ["none", "step", "exponential"])
def test_warm_up_multiplies_the_rate_of_its_epoch(schedule: str) -> None:
    settings = {"gamma": 0.5, "step_epochs": 1}
    plain, warmed = rates(recipe_of(schedule, **settings)), rates(recipe_of(schedule, warmup_epochs=2, **settings))
    shares = [(step + 1) / (2 * STEPS) for step in range(2 * STEPS)]
    assert warmed[: 2 * STEPS] == pytest.approx([rate * share for rate, share in zip(plain, shares, strict=False)])
    assert warmed[2 * STEPS - 1 :] == plain[2 * STEPS - 1 :]


def test_warm_up_of_part_of_an_epoch() -> None:
    found = rates(recipe_of("none", warmup_epochs=0.5), steps=10)
    assert found[:6] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2, 0.2])


@pytest.mark.parametrize("schedule", ["cosine", "polynomial", "none"])
def test_a_run_that_is_all_warm_up_ends_at_the_whole_rate(schedule: str) -> None:
    found = rates(recipe_of(schedule, epochs=2, warmup_epochs=2))
    assert found == pytest.approx([0.2 * (step + 1) / (2 * STEPS) for step in range(2 * STEPS)])


@pytest.mark.parametrize("schedule", ["cosine", "polynomial"])
def test_rate_is_0_at_the_end_and_stays_there(schedule: str) -> None:
    recipe = recipe_of(schedule)
    assert rates(recipe)[-1] > 0
    assert learning_rate(recipe, recipe.epochs, 0, STEPS) == pytest.approx(0, abs=1e-15)
    assert learning_rate(recipe, recipe.epochs + 3, 1, STEPS) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("schedule", ["none", "step", "exponential", "cosine", "polynomial"])
def test_every_schedule_begins_at_the_whole_rate(schedule: str) -> None:
    assert learning_rate(recipe_of(schedule), 0, 0, STEPS) == 0.2
