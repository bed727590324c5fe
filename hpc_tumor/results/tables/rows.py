"""Rows of result tables: an entry, one of its runs, a control without a network, or published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import DECISION, KNOWN, MAIN_SCORE, RIGHT_OR_WRONG, measure
from hpc_tumor.results.compare.published import PUBLISHED, PublishedResult
from hpc_tumor.results.compare.statistics import Statistic, bootstrap_means, exact_interval, mean_and_sd
from hpc_tumor.results.read.lazy import LazyPresent
from hpc_tumor.results.read.run_result import RunResult, Scores, mean_of
from hpc_tumor.scores import classification_scores, confusion_counts, of_confusion
from hpc_tumor.vocabulary import CONTROLS, counted

_OF_ANSWERS = ("balanced_accuracy", "precision", "recall", "f1", "mcc")  # scores that need no probabilities


@dataclass(frozen=True)
class Row:
    """One row; `label` is a shorter `name`, for a row below that of its entry."""

    kind: Literal["entry", "new", "known", "decision", "run", "control", "published"]
    name: str
    task: str
    model: str
    label: str = ""
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    last: Scores = field(default_factory=dict)
    train: Scores = field(default_factory=dict)
    runs: tuple[RunResult, ...] = ()
    parameters: int | None = None
    epochs: str = ""
    entry: Entry | None = None

    @property
    def main(self) -> str:
        """The main score of the task."""
        return MAIN_SCORE[self.task]

    def value(self, score: str) -> float | None:
        """Return the mean of a score."""
        if self.kind == "entry" and self.entry is not None:
            return self.entry.value(score)
        statistic = self.statistics.get(score)
        return statistic.mean if statistic else None

    @property
    def gpus(self) -> str:
        """GPUs per run; `2 CPU` is two processes on CPUs."""
        shown = {_gpus(run) for run in self.runs}
        return shown.pop() if len(shown) == 1 else "mixed" if shown else ""

    def mean(self, name: str) -> float | None:
        """Return the mean of a field over the runs, such as `seconds`; None if a run does not have it."""
        return mean_of(self.runs, name)

    def total(self, name: str) -> float | None:
        """Return the sum of a field over the runs; None if a run does not have it."""
        mean = self.mean(name)
        return None if mean is None else mean * len(self.runs)


def group_rows(group: Group, *, runs: bool = True, published: bool = False, subsets: bool = False) -> list[Row]:
    """Build the rows of a group: entries in their order, each followed by the rows asked for; then the controls.

    Args:
        runs: rows of single runs, of entries with several.
        published: rows of published results.
        subsets: rows of scores on images without a duplicate, of entries that have both kinds of images, on images of
            known patients, and of decisions per patient.
    """
    rows = []
    last = {entry.model: entry for entry in group.entries}
    for entry in group.entries:
        rows.append(entry_row(entry))
        if subsets:
            rows += [*filter(None, [new_images_row(entry)]), *known_patients_rows(entry)]
        if runs and len(entry.runs) > 1:
            rows += [run_row(entry, run) for run in entry.runs]
        if published and last[entry.model] is entry and entry.model in PUBLISHED:
            rows.append(published_row(PUBLISHED[entry.model]))
    return [*rows, *control_rows(group)]


def entry_row(entry: Entry) -> Row:
    """Build the row of an entry."""
    over = "" if len(entry.runs) == 1 else f", {_counts(entry)}"
    return Row(
        kind="entry",
        name=entry.name + over,
        task=entry.task,
        model=entry.model,
        statistics=entry.statistics,
        last=_means([run.last for run in entry.runs]),
        train=_means([run.last_train for run in entry.runs]),
        runs=entry.runs,
        parameters=entry.runs[0].parameters,
        epochs=_epochs(entry.runs),
        entry=entry,
    )


def new_images_row(entry: Entry) -> Row | None:
    """Build the row of scores on test images without a duplicate in training or validation; None if all or none are."""
    images = [run.cases.images for run in entry.runs]
    known = [(tested, tested.known) for tested in images if tested is not None and tested.known is not None]
    if len(known) < len(entry.runs) or not any(mask.any() for _, mask in known) or any(mask.all() for _, mask in known):
        return None
    each = [
        classification_scores(tested.probabilities[~mask], tested.labels[~mask], tested.classes)
        for tested, mask in known
    ]
    statistics = {}
    for name in each[0]:
        mean, sd = mean_and_sd([None if (value := scores.get(name)) != value else value for scores in each])
        if mean is not None and name != "loss":
            statistics[name] = Statistic(mean, sd=sd)
    if (accuracy := entry.statistics.get("accuracy_new")) is not None:
        statistics["accuracy"] = accuracy
    return Row("new", f"{entry.name}: new images only", entry.task, entry.model, statistics=statistics, entry=entry)


def known_patients_rows(entry: Entry) -> list[Row]:
    """Build the rows of scores on images of known patients, and of one decision per patient; empty if unknown."""
    rows = []
    for prefix, subset in entry.subsets.items():
        kind: Literal["known", "decision"] = "known" if prefix == KNOWN else "decision"
        words = {
            KNOWN: f"{counted(subset.n, 'image')}, patient known",
            DECISION: f"decisions on {counted(subset.n, 'patient')}",
        }[prefix]
        names = [name for name in subset.scores[0] if name != "loss"]
        statistics = LazyPresent({name: partial(subset.statistic, name) for name in names})
        name = f"{entry.name}: {words}"
        rows.append(Row(kind, name, entry.task, entry.model, statistics=statistics, entry=entry))
    return rows


def best_places(group: Group, rows: Sequence[Row], score: str) -> list[int]:
    """Return the rows of the best entries by the rounded score, among those tested on the same cases."""
    metric = measure(group.task, score)
    compared = {entry.name for entry in group.compared}
    values = {
        index: value
        for index, row in enumerate(rows)
        if row.kind == "entry" and row.entry and row.entry.name in compared and (value := row.value(score)) is not None
    }
    if len(values) < 2:
        return []
    best = metric.show((max if metric.larger_is_better else min)(values.values()))
    return [index for index, value in values.items() if metric.show(value) == best]


def run_row(entry: Entry, run: RunResult) -> Row:
    """Build the row of one run, below that of its entry."""
    seed = "" if run.seed is None or (len(entry.seeds) == 1 and run.fold is not None) else f"seed {run.seed}"
    parts = [seed, "" if run.fold is None else f"fold {run.fold}", run.run if entry.pooled else ""]
    detail = ", ".join(part for part in parts if part) + (" (last epoch)" if run.weights_lost else "")
    return Row(
        kind="run",
        name=f"{entry.name}, {detail}",
        label=f"  {detail}",
        task=run.task,
        model=run.model,
        statistics={name: Statistic(value) for name, value in run.best.items() if value is not None},
        last=run.last,
        train=run.last_train,
        runs=(run,),
        parameters=run.parameters,
        epochs=_epochs([run]),
        entry=entry,
    )


def published_row(result: PublishedResult) -> Row:
    """Build the row of a published result, marked as such."""
    return Row(
        kind="published",
        name=f"{result.model}: published{' (leaking split)' if result.split_leaks else ''}",
        task=result.task,
        model=result.model,
        statistics={name: Statistic(value) for name, value in result.test.items()},
        train=result.train,
        parameters=result.parameters,
        epochs=str(result.epochs),
    )


def control_rows(group: Group) -> list[Row]:
    """Build the rows of the controls: the class of the most similar image, by file facts, and by intensities."""
    rows = []
    for control, cases in group.controls.items():
        groups = None if cases.groups is None else cases.groups.tolist()
        means = {score: bootstrap_means(values[:, None], groups)[0] for score, values in cases.values.items()}
        statistics = {score: _exact(score, mean) for score, mean in means.items() if mean is not None}
        if (images := cases.images) is not None:
            counts = confusion_counts(images.controls[control], images.labels, len(images.classes))
            of_counts = of_confusion(counts, images.classes, counts.sum(1) > 0)
            statistics |= {score: Statistic(float(of_counts[score])) for score in _OF_ANSWERS}
        rows.append(Row("control", f"{CONTROLS[control]} (no network)", group.task, "", statistics=statistics))
    return rows


def _exact(score: str, mean: Statistic) -> Statistic:
    """Replace the interval of a share of 0 or 1, of which resamples do not differ, by the exact one."""
    if score not in RIGHT_OR_WRONG or mean.low is None or mean.low != mean.high:
        return mean
    low, high = exact_interval(mean.mean, mean.units or 1)
    return replace(mean, low=low, high=high)


def _gpus(run: RunResult) -> str:
    if run.gpus is None:
        return ""
    return f"{run.gpus} CPU" if run.device == "cpu" else str(run.gpus)


def _counts(entry: Entry) -> str:
    """Return `3 seeds`, `5 folds`, `3 seeds × 5 folds`."""
    if entry.pooled:
        return f"{len(entry.runs)} runs"
    seeds, folds = len(entry.seeds), len(entry.folds)
    parts = [f"{count} {word}" for count, word in ((seeds, "seeds"), (folds, "folds")) if count > 1]
    complete = len(entry.runs) == max(1, seeds) * max(1, folds)
    return " × ".join(parts) if parts and complete else f"{len(entry.runs)} runs"


def _epochs(runs: Sequence[RunResult]) -> str:
    known = sorted({run.epochs for run in runs if run.epochs is not None})
    if not known:
        return ""
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,}–{known[-1]:,}"


def _means(scores: Sequence[Scores]) -> Scores:
    means = {name: mean_and_sd([item.get(name) for item in scores])[0] for name in (scores[0] if scores else ())}
    return {name: mean for name, mean in means.items() if mean is not None}
