"""Detail tables: structures or classes, runs, unfinished runs and skipped folders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hpc_tumor.results.compare.comparison import Comparison, Group, UnfinishedRun
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import MAIN_SCORE, OF_STRUCTURES, measure
from hpc_tumor.results.compare.statistics import Statistic
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.tables.columns import interval, quartiles, whole
from hpc_tumor.run_dir import describe_lost_weights
from hpc_tumor.table import NOTHING, Column, Table, fill
from hpc_tumor.vocabulary import STRUCTURES


@dataclass(frozen=True)
class Part:
    """Scores of one entry on one structure or class of images."""

    entry: Entry
    name: str

    def statistic(self, score: str) -> Statistic | None:
        return self.entry.statistics.get(f"{score}_{self.name}")

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of test cases of each status; empty if unknown."""
        return dict(self.entry.counted(self.name))


def _mean(task: str, score: str) -> Column:
    metric = measure(task, score)
    return Column(metric.heading, cell=lambda part: metric.show(part.entry.value(f"{score}_{part.name}")))


def _interval(task: str, score: str, title: str) -> Column:
    return Column(title, cell=lambda part: interval(task, score, part.statistic(score)))


def _quartiles(score: str, title: str) -> Column:
    return Column(title, cell=lambda part: quartiles("segmentation", score, part.statistic(score)))


def _count(status: str, title: str) -> Column:
    return Column(title, cell=lambda part: str(part.counts.get(status, 0)) if part.counts else "")


_MODEL = Column("model", "left", cell=lambda part: part.entry.name)
_PARTS = {
    "segmentation": (
        _MODEL,
        Column("structure", "left", cell=lambda part: part.name),
        Column("n", cell=lambda part: whole(part.statistic("dice").n)),
        _count("empty", "empty"),
        _count("missed", "missed"),
        _count("false alarm", "false alarms"),
        _mean("segmentation", "dice"),
        _interval("segmentation", "dice", "95 % CI"),
        _quartiles("dice", "median [IQR]"),
        _mean("segmentation", "hd95"),
        _quartiles("hd95", "median HD95 [IQR]"),
        *(_mean("segmentation", score) for score in OF_STRUCTURES[2:]),
    ),
    "classification": (
        _MODEL,
        Column("class", "left", cell=lambda part: part.name),
        Column("images", cell=lambda part: whole(part.entry.images_of(part.name))),
        _mean("classification", "precision"),
        _interval("classification", "precision", "precision 95 % CI"),
        _mean("classification", "recall"),
        _interval("classification", "recall", "recall 95 % CI"),
        _mean("classification", "f1"),
        _interval("classification", "f1", "F1 95 % CI"),
        _mean("classification", "auroc"),
        _interval("classification", "auroc", "AUROC 95 % CI"),
    ),
}
_ABOUT_PARTS = {
    "segmentation": (
        "Scores of each label (NCR, ED, ET) and region (WT, TC, ET)",
        "Empty: absent and not predicted. Missed: present but not predicted; false alarm: absent but predicted; each by"
        " at least one seed. IQR: first to third quartile over patients.",
    ),
    "classification": ("Scores of each class", "Intervals: bootstrap over {units}."),
}


def parts_table(group: Group) -> Table:
    """Build the table of every score of every structure or class of each entry."""
    title, note = _ABOUT_PARTS[group.task]
    parts = [part for entry in group.entries for part in _parts(entry)]
    return fill(title, _PARTS[group.task], parts, (note.format(units=group.units),), NOTHING)


def _parts(entry: Entry) -> list[Part]:
    if entry.task == "segmentation":
        return [Part(entry, name) for name in STRUCTURES if f"dice_{name}" in entry.statistics]
    scores = (name.partition("_") for name in entry.statistics)
    return [Part(entry, name) for score, _, name in scores if score == "recall" and name]


def runs_table(group: Group) -> Table:
    """Build the table of all finished runs."""
    metric = measure(group.task, group.main)
    repeated = {id(run) for entry in group.entries for run in entry.repeated}
    names = {id(run): entry.name for entry in group.entries for run in entry.all_runs}
    columns = (
        Column("run", "left", cell=lambda run: run.run),
        Column("entry", "left", cell=lambda run: names[id(run)]),
        Column("seed", cell=lambda run: _text(run.seed)),
        Column("fold", cell=lambda run: _text(run.fold)),
        Column("epochs", cell=lambda run: whole(run.epochs)),
        Column("best epoch", cell=lambda run: whole(run.best_epoch)),
        Column(metric.heading, cell=lambda run: metric.show(run.score)),
        Column("last", cell=lambda run: metric.show(run.last.get(group.main))),
        Column("skipped steps", cell=lambda run: _text(run.skipped_steps)),
        Column("restarts", cell=lambda run: _text(run.restarts)),
        Column("device", "left", cell=_device),
        Column("remarks", "left", wrap=True, cell=lambda run: "; ".join(_remarks(run, id(run) in repeated))),
    )
    return fill("Runs", columns, group.runs, empty=NOTHING)


def unfinished_table(comparison: Comparison) -> Table:
    """Build the table of runs without a result, with their state."""
    columns = (
        Column("run", "left", cell=lambda run: run.run),
        Column("model", "left", keep=20, cell=lambda run: run.model or ""),
        Column("epoch", cell=_epoch),
        Column("best so far", "left", keep=30, cell=_best),
        Column("state", "left", wrap=True, cell=_state),
    )
    notes = ("Best so far: on validation data.",) if any(run.best is not None for run in comparison.unfinished) else ()
    return fill("Unfinished runs", columns, comparison.unfinished, notes, NOTHING)


def skipped_table(comparison: Comparison) -> Table:
    """Build the table of skipped folders and the reasons."""
    columns = (
        Column("folder", "left", wrap=True, cell=lambda item: item.path),
        Column("reason", "left", wrap=True, cell=lambda item: item.reason),
    )
    return fill("Skipped folders", columns, comparison.skipped)


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _device(run: RunResult) -> str:
    count = f"{run.gpus} × " if run.gpus and run.gpus > 1 else ""
    return f"{count}{run.device}" if run.device else ""


def _remarks(run: RunResult, repeated: bool) -> list[str]:
    remarks = [*run.remarks, *(["stopped early"] if run.stopped_early else [])]
    remarks += [describe_lost_weights(run.weights_lost)] if run.weights_lost else []
    return [*remarks, *(["superseded by a later run"] if repeated else [])]


def _epoch(run: UnfinishedRun) -> str:
    return (
        "/".join(str(epoch) for epoch in (run.epoch, run.epochs) if epoch is not None) if run.epoch is not None else ""
    )


def _best(run: UnfinishedRun) -> str:
    if run.best is None:
        return ""
    title = measure(run.task, run.best_by).title if run.task in MAIN_SCORE and run.best_by else ""
    return f"{title} {run.best:.3f}".strip()


def _state(run: UnfinishedRun) -> str:
    skipped = f" ({run.skipped_steps} steps skipped)" if run.skipped_steps else ""
    return ": ".join(filter(None, (run.state, run.reason))) + skipped
