"""One batch over and over: a network and a recipe that cannot learn that will learn nothing else."""

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

LOSS_LEFT = 0.1  # of the first loss; only where a network that always says the same does not get there
SCORES = {"classification": ("accuracy", 0.95), "segmentation": ("dice", 0.8)}
_LINES = 20


@dataclass(frozen=True)
class Look:
    """Mean loss and score of the steps since the last look, and of what the score is the mean."""

    loss: float
    score: float
    labels: str = ""


def overfit(state: TrainingState, steps: int) -> None:
    """Train on the first batch for at most so many steps, with loss and score now and then, until it is learned.

    It leaves neither checkpoint nor result. Scores are those of the training steps, so with dropout.

    Raises TrainingError: it was not learned; with what to look at.
    """
    batch, recipe = state.parts.first_batch(state.experiment.seed), state.experiment.recipe
    every, (main, _) = -(-steps // _LINES), SCORES[state.experiment.task]
    show(f"\noverfit    one batch of {len(batch.images)}, up to {steps} steps at the rate {recipe.learning_rate:g};"
         " no augmentation, schedule or decay")  # fmt: skip
    totals, first, seen, done = epoch_totals(state), 0.0, Look(0, 0), 0
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
            seen, totals = _look(totals, main), epoch_totals(state)
            show(f"           step {done:>5}  loss {number(seen.loss):>8}  {main} {seen.score:.3f}")
            if is_learned(state.experiment.task, first, seen):
                break
    _judge(state, first, seen, done, steps)


def _look(totals: dict[str, Any], main: str) -> Look:
    scores = training_scores(totals)
    labels = [f"{label} {scores[f'dice_{label}']:.2f}" for label in LABELS if f"dice_{label}" in scores]
    return Look(scores["loss"], scores[main], f" ({', '.join(labels)})" if labels else "")


def is_learned(task: str, first: float, seen: Look) -> bool:
    """Return True where a batch counts as learned, by its loss, which was `first` in the beginning, and its score."""
    # Where nearly all pixels are background, the loss falls far before a single label is found.
    fell = task == "classification" and seen.loss <= LOSS_LEFT * first
    return fell or seen.score >= SCORES[task][1]


def _judge(state: TrainingState, first: float, seen: Look, done: int, steps: int) -> None:
    """The last line."""
    run, recipe, (main, enough) = state.run, state.experiment.recipe, SCORES[state.experiment.task]
    now = f"loss {number(seen.loss)}, at first {number(first)}; {main} {seen.score:.3f}{seen.labels}"
    if is_learned(state.experiment.task, first, seen):
        said = f"learned one batch in {done} {plural(done, 'step')}: {now}"
        show(f"verdict    {said}")
        run.add_event("stopped", reason=said)
        run.write_status(RunStatus.STOPPED, loss=seen.loss, step=done, steps=steps)
        return
    wanted = f"{main} {enough:g}" + (f" or {LOSS_LEFT:.0%} of the first loss" if state.spec.classes else "")
    if seen.score >= enough / 2:
        advice = f"It is on its way: give it more steps, --overfit {4 * steps}."
    else:
        advice = (
            f"Give it more steps, or look at recipe.learning_rate ({recipe.learning_rate:g}), at layers flagged above,"
            " and whether the targets belong to the images."
        )
    raise TrainingError(f"one batch was not learned in {done} steps, to {wanted}: {now}. {advice}")
