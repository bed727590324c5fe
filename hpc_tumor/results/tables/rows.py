"""What one row of a table of results shows: an entry, one run of it, the nearest neighbour, or published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import MAIN_SCORE, measure
from hpc_tumor.results.compare.published import PUBLISHED, PublishedResult
from hpc_tumor.results.compare.statistics import Statistic, bootstrap_means, mean_and_sd
from hpc_tumor.results.read.run_result import RunResult, Scores, mean_of
from hpc_tumor.scores import classification_scores, confusion_counts, of_confusion

_OF_ANSWERS = ("balanced_accuracy", "precision", "recall", "f1", "mcc")  # which need no probabilities


@dataclass(frozen=True)
class Row:
    """One row: `name` says all, `label` is shorter, for a row that stands below that of its entry."""

    kind: Literal["entry", "new", "run", "neighbour", "published"]
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
        """The score that decides."""
        return MAIN_SCORE[self.task]

    def value(self, score: str) -> float | None:
        """Mean of a score."""
        if self.kind == "entry" and self.entry is not None:
            return self.entry.value(score)
        found = self.statistics.get(score)
        return found.mean if found else None

    @property
    def gpus(self) -> str:
        """GPUs of each run; `2 CPU` are two processes on CPUs."""
        shown = {_gpus(run) for run in self.runs}
        return shown.pop() if len(shown) == 1 else "mixed" if shown else ""

    def mean(self, name: str) -> float | None:
        """Mean over the runs of what one of them took: `seconds`, `peak_memory_gb` …; None where one does not say."""
        return mean_of(self.runs, name)

    def total(self, name: str) -> float | None:
        """As `mean`, added up."""
        mean = self.mean(name)
        return None if mean is None else mean * len(self.runs)


def group_rows(group: Group, *, runs: bool = True, published: bool = False, new: bool = False) -> list[Row]:
    """Rows of one group: entries in their order, with their `runs` where there are several, and others beside them.

    `new`: below each entry its scores on images without a copy, where there are others.
    """
    rows = []
    last = {entry.model: entry for entry in group.entries}
    for entry in group.entries:
        rows.append(entry_row(entry))
        if new and (alone := new_images_row(entry)) is not None:
            rows.append(alone)
        if runs and len(entry.runs) > 1:
            rows += [run_row(entry, run) for run in entry.runs]
        if published and last[entry.model] is entry and entry.model in PUBLISHED:
            rows.append(published_row(PUBLISHED[entry.model]))
    if (neighbour := neighbour_row(group)) is not None:
        rows.append(neighbour)
    return rows


def entry_row(entry: Entry) -> Row:
    """The row of all runs of an entry."""
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
    """Every score on the test images without a copy in training or validation; None where all are new, or none is."""
    images = [run.cases.images for run in entry.runs]
    known = [one.known for one in images if one is not None and one.known is not None]
    if len(known) < len(entry.runs) or not any(some.any() for some in known) or any(some.all() for some in known):
        return None
    each = [
        classification_scores(one.probabilities[~one.known], one.labels[~one.known], one.classes)
        for one in images
        if one is not None and one.known is not None
    ]
    statistics = {}
    for name in each[0]:
        mean, sd = mean_and_sd([None if (value := one.get(name)) != value else value for one in each])
        if mean is not None and name != "loss":
            statistics[name] = Statistic(mean, sd=sd)
    if (accuracy := entry.statistics.get("accuracy_new")) is not None:
        statistics["accuracy"] = accuracy
    name = f"{entry.name}: new images alone"
    return Row("new", name, entry.task, entry.model, statistics=statistics, entry=entry)


def best_places(group: Group, rows: Sequence[Row], score: str) -> list[int]:
    """Places of the entries with the best value as it is written, of those tested on the same cases."""
    shown = measure(group.task, score)
    compared = {entry.name for entry in group.compared}
    values = {
        place: value
        for place, row in enumerate(rows)
        if row.kind == "entry" and row.entry and row.entry.name in compared and (value := row.value(score)) is not None
    }
    if len(values) < 2:
        return []
    best = shown.show((max if shown.larger_is_better else min)(values.values()))
    return [place for place, value in values.items() if shown.show(value) == best]


def run_row(entry: Entry, run: RunResult) -> Row:
    """The row of one run, below that of its entry."""
    seed = "" if run.seed is None or (len(entry.seeds) == 1 and run.fold is not None) else f"seed {run.seed}"
    parts = [seed, "" if run.fold is None else f"fold {run.fold}", run.run if entry.pooled else ""]
    which = ", ".join(part for part in parts if part) + (" (last epoch)" if run.weights_lost else "")
    return Row(
        kind="run",
        name=f"{entry.name}, {which}",
        label=f"  {which}",
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
    """The row of published figures, marked as such."""
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


def neighbour_row(group: Group) -> Row | None:
    """What answering with the class of the nearest image scores on the same test images."""
    cases = group.neighbour
    if cases is None:
        return None
    groups = None if cases.groups is None else cases.groups.tolist()
    means = {score: bootstrap_means(values[:, None], groups)[0] for score, values in cases.values.items()}
    statistics = {score: mean for score, mean in means.items() if mean is not None}
    images = cases.images
    if images is not None and images.nearest is not None:
        counts = confusion_counts(images.nearest, images.labels, len(images.classes))
        of_counts = of_confusion(counts, images.classes)
        statistics |= {score: Statistic(float(of_counts[score])) for score in _OF_ANSWERS}
    return Row("neighbour", "nearest neighbour (no network)", group.task, "", statistics=statistics)


def _gpus(run: RunResult) -> str:
    if run.gpus is None:
        return ""
    return f"{run.gpus} CPU" if run.device == "cpu" else str(run.gpus)


def _counts(entry: Entry) -> str:
    """`3 seeds`, `5 folds`, `3 seeds × 5 folds`."""
    if entry.pooled:
        return f"{len(entry.runs)} runs"
    seeds, folds = len(entry.seeds), len(entry.folds)
    parts = [f"{count} {word}" for count, word in ((seeds, "seeds"), (folds, "folds")) if count > 1]
    whole = len(entry.runs) == max(1, seeds) * max(1, folds)
    return " × ".join(parts) if parts and whole else f"{len(entry.runs)} runs"


def _epochs(runs: Sequence[RunResult]) -> str:
    """Epochs trained: one number, or from – to."""
    known = sorted({run.epochs for run in runs if run.epochs is not None})
    if not known:
        return ""
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,}–{known[-1]:,}"


def _means(scores: Sequence[Scores]) -> Scores:
    """Mean of every score that all of them have."""
    means = {name: mean_and_sd([one.get(name) for one in scores])[0] for name in (scores[0] if scores else ())}
    return {name: mean for name, mean in means.items() if mean is not None}
