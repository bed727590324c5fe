"""One batch over and over: a network and a recipe that cannot learn that will learn nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hpc_tumor.errors import TrainingError
from hpc_tumor.training.inspect.network import first_batch, number, show
from hpc_tumor.training.inspect.tracing import Tracer
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.step import train_step
from hpc_tumor.vocabulary import LABELS, plural

if TYPE_CHECKING:
    from hpc_tumor.training.working_set import Setup

LOSS_LEFT = 0.1  # of the first loss; only where a network that always says the same does not get there
SCORES = {"accuracy": 0.95, "dice": 0.8}
_LINES = 20


@dataclass(frozen=True)
class Progress:
    """Mean loss and score of the steps since the last look, and of what the score is the mean."""

    loss: float
    score: float
    labels: str = ""


def overfit(setup: Setup, steps: int) -> None:
    """Train on the first batch for at most so many steps, with loss and score now and then, until it is learned.

    It leaves neither checkpoint nor result. Scores are those of the training steps, so with dropout.

    Raises TrainingError: it was not learned; with what to look at.
    """
    batch, recipe = first_batch(setup), setup.experiment.recipe
    main = "dice" if setup.classes is None else "accuracy"
    every = -(-steps // _LINES)
    show(f"\noverfit    one batch of {len(batch.images)}, up to {steps} steps at the rate {recipe.learning_rate:g};"
         " no augmentation, schedule or decay")  # fmt: skip
    totals, first, seen, done = setup.own_totals(), 0.0, Progress(0, 0), 0
    setup.bare.train()
    with Tracer(setup, steps) as tracer:
        for done in range(1, steps + 1):
            setup.state.step = done - 1
            setup.mark("data")
            train_step(setup, replace(batch, step=done - 1), totals, (False, False))
            setup.guard.look(totals, everything=True)
            tracer.step()
            first = first if done > 1 else setup.loss_now() or 0.0
            if done % every and done not in (1, steps):
                continue
            seen, totals = _progress(setup, totals), setup.own_totals()
            show(f"           step {done:>5}  loss {number(seen.loss):>8}  {main} {seen.score:.3f}")
            if is_learned(setup, first, seen, main):
                break
    _judge(setup, first, seen, done, steps)


def _progress(setup: Setup, totals: dict[str, Any]) -> Progress:
    samples = max(1, totals["samples"])
    loss = totals["loss"].item() / samples
    if setup.classes is not None:
        return Progress(loss, totals["right"].item() / samples)
    scores = metrics.segmentation_scores(totals["histogram"].cpu().numpy()[None])
    labels = ", ".join(f"{label} {scores[f'dice_{label}']:.2f}" for label in LABELS)
    return Progress(loss, scores["dice"], f" ({labels})")


def is_learned(setup: Setup, first: float, seen: Progress, main: str) -> bool:
    """Return True where a batch counts as learned, by its loss, which was `first` in the beginning, and its score."""
    # Where nearly all pixels are background, the loss falls far before a single label is found.
    fell = setup.classes is not None and seen.loss <= LOSS_LEFT * first
    return fell or seen.score >= SCORES[main]


def _judge(setup: Setup, first: float, seen: Progress, done: int, steps: int) -> None:
    """The last line."""
    run, main, recipe = setup.run, "dice" if setup.classes is None else "accuracy", setup.experiment.recipe
    now = f"loss {number(seen.loss)}, at first {number(first)}; {main} {seen.score:.3f}{seen.labels}"
    if is_learned(setup, first, seen, main):
        said = f"learned one batch in {done} {plural(done, 'step')}: {now}"
        show(f"verdict    {said}")
        run.add_event("stopped", reason=said)
        run.write_status(state="stopped", loss=seen.loss, step=done, steps=steps)
        return
    wanted = f"{main} {SCORES[main]:g}" + (f" or {LOSS_LEFT:.0%} of the first loss" if setup.classes else "")
    if seen.score >= SCORES[main] / 2:
        advice = f"It is on its way: give it more steps, --overfit {4 * steps}."
    else:
        advice = (
            f"Give it more steps, or look at recipe.learning_rate ({recipe.learning_rate:g}), at layers flagged above,"
            " and whether the targets belong to the images."
        )
    raise TrainingError(f"one batch was not learned in {done} steps, to {wanted}: {now}. {advice}")
