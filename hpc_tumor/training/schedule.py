"""The learning rate of every step: a function of where the run stands, so that a resumed run needs no memory of it."""

from __future__ import annotations

import math

from hpc_tumor.config import Recipe


def learning_rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """The learning rate with which one step is made.

    step and exponential change the rate once per epoch. cosine (Loshchilov 2017, without restarts) and polynomial
    (Chen 2018; nnU-Net, Isensee 2021) change it in every step, from the whole rate in the first step after the
    warm-up towards 0 at the end of the last epoch. A linear warm-up (Goyal 2017) multiplies all of them: its last
    step has the schedule's rate.

    Args:
        recipe: what was chosen.
        epoch: from 0.
        step: of the epoch, from 0.
        steps: of each epoch.
    """
    done, total = epoch * steps + step, recipe.epochs * steps
    warmup = round(recipe.warmup_epochs * steps)
    rising = (done + 1) / warmup if done < warmup else 1.0
    progress = min(1.0, max(0, done - warmup) / max(1, total - warmup))
    return recipe.learning_rate * rising * _factor(recipe, epoch, progress)


def _factor(recipe: Recipe, epoch: int, progress: float) -> float:
    """What the schedule leaves of the rate: `progress` goes from 0 at the end of the warm-up to 1 at the run's."""
    if recipe.schedule == "step":
        return recipe.gamma ** (epoch // recipe.step_epochs)
    if recipe.schedule == "exponential":
        return recipe.gamma**epoch
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if recipe.schedule == "polynomial":
        return (1 - progress) ** recipe.power
    return 1.0
