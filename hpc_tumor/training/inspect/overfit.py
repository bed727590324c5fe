"""Overfit one batch: a network and recipe that cannot learn it will not learn anything else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hpc_tumor.errors import TrainingError
from hpc_tumor.training.inspect.network import number, show
from hpc_tumor.training.inspect.step_times import Tracer
from hpc_tumor.training.state import TrainingState, epoch_totals, last_loss, mark, training_scores
from hpc_tumor.training.step import train_step
from hpc_tumor.training.watch.guard import check_steps
from hpc_tumor.vocabulary import LABELS, RunStatus, plural

LOSS_LEFT = 0.1  # of the first loss; only for tasks where a constant prediction does not reach it
SCORES = {"classification": ("accuracy", 0.95), "segmentation": ("dice", 0.8)}
_LINES = 20


@dataclass(frozen=True)
class Check:
    """Mean loss and score of the steps since the last check; `labels` lists the scores behind the mean."""

    loss: float
    score: float
    labels: str = ""


def overfit(state: TrainingState, steps: int) -> None:
    """Train on the first batch until it is learned, for at most `steps` steps; show loss and score at intervals.

    Leaves neither checkpoint nor result. Scores are those of the training steps, with dropout.

    Raises TrainingError if it was not learned, with advice.
    """
    batch, recipe = state.parts.first_batch(state.experiment.seed), state.experiment.recipe
    every, (main, _) = -(-steps // _LINES), SCORES[state.experiment.task]
    show(f"\noverfit    one batch of {len(batch.images)}, up to {steps} steps at the rate {recipe.learning_rate:g};"
         " no augmentation, schedule or decay")  # fmt: skip
    totals, first, last, done = epoch_totals(state), 0.0, Check(0, 0), 0
    state.network.train()
    with Tracer(state, steps) as tracer:
        for done in range(1, steps + 1):
            state.progress.step = done - 1
            mark(state, "data")
            train_step(state, replace(batch, step=done - 1), totals, (False, False))
            check_steps(state, totals, everything=True)
            tracer.step()
            first = first if done > 1 else last_loss(state) or 0.0
            if done % every and done not in (1, steps):
                continue
            last, totals = _check(totals, main), epoch_totals(state)
            show(f"           step {done:>5}  loss {number(last.loss):>8}  {main} {last.score:.3f}")
            if is_learned(state.experiment.task, first, last):
                break
    _report(state, first, last, done, steps)


def _check(totals: dict[str, Any], main: str) -> Check:
    scores = training_scores(totals)
    labels = [f"{label} {scores[f'dice_{label}']:.2f}" for label in LABELS if f"dice_{label}" in scores]
    return Check(scores["loss"], scores[main], f" ({', '.join(labels)})" if labels else "")


def is_learned(task: str, first: float, last: Check) -> bool:
    """Return True if a batch counts as learned, by its score or by its loss compared with the `first` one."""
    # In segmentation, nearly all pixels are background: the loss falls far before any label is learned.
    fell = task == "classification" and last.loss <= LOSS_LEFT * first
    return fell or last.score >= SCORES[task][1]


def _report(state: TrainingState, first: float, last: Check, done: int, steps: int) -> None:
    """Show and record the verdict if the batch was learned; raise TrainingError if not."""
    run, recipe, (main, target) = state.run, state.experiment.recipe, SCORES[state.experiment.task]
    now = f"loss {number(last.loss)}, initially {number(first)}; {main} {last.score:.3f}{last.labels}"
    if is_learned(state.experiment.task, first, last):
        verdict = f"learned one batch in {done} {plural(done, 'step')}: {now}"
        show(f"verdict    {verdict}")
        run.add_event("stopped", reason=verdict)
        run.write_status(RunStatus.STOPPED, loss=last.loss, step=done, steps=steps)
        return
    goal = f"{main} {target:g}" + (f" or {LOSS_LEFT:.0%} of the first loss" if state.spec.classes else "")
    if last.score >= target / 2:
        advice = f"It is improving: try more steps, --overfit {4 * steps}."
    else:
        advice = (
            f"Try more steps, or check recipe.learning_rate ({recipe.learning_rate:g}), the layers flagged above,"
            " and whether the targets match the images."
        )
    raise TrainingError(f"one batch was not learned in {done} steps, to {goal}: {now}. {advice}")
