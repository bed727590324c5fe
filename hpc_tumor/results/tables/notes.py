"""Notes on a table: what every figure is a mean of, and what keeps rows from being compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import get_args

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.measures import CASES, UNITS
from hpc_tumor.results.compare.published import LEAKS, PUBLISHED
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.run_dir import Damage, describe_lost_weights
from hpc_tumor.vocabulary import listed

FEW = 10  # test cases, below which intervals are not to be relied on
_LAST_EPOCH = "last epoch"  # what chose the weights where nothing else could


def group_notes(group: Group) -> tuple[str, ...]:
    """Notes on what every figure of the full tables is a mean of, and on what keeps their rows from being compared."""
    first = f"Scores: means over the test {CASES[group.task]}, with the weights of {_weights_of(group)}."
    notes: list[str] = []
    if group.task == "segmentation":
        first += " Dice: mean over the labels NCR, ED and ET."
        notes += _surfaces(group)
    else:
        first += " Train: accuracy in the last epoch; confidence: mean of the largest softmax value."
        if _looked_for_copies(group):
            notes.append("New: accuracy on the test images of which no copy, identical or near, trained or validated.")
    if _has_intervals(group):
        units = "groups of duplicate images" if group.task == "classification" else "test patients"
        without = " AUROC and ECE have none." if group.task == "classification" else ""
        notes.append(f"95 % CI: percentile bootstrap of the mean over {units}, {RESAMPLES:,} resamples.{without}")
    if over := _spread(group):
        notes.append(f"± sd: standard deviation of the runs' scores over {over} (n − 1); no interval.")
    return _with_cautions(group, first, notes, LEAKS[group.task])


def brief_notes(group: Group, left_out: Collection[str] = ()) -> tuple[str, ...]:
    """The same in few words, for a terminal; without those on columns that are `left_out`, by their keys."""
    notes: list[str] = []
    if group.task == "segmentation":
        notes.append(
            "Dice, HD95 (mm), NSD: means over NCR, ED and ET; HD95 of a missed tumour: the volume's diagonal."
            if any(run.surfaces for run in group.runs)
            else "Dice: mean over NCR, ED and ET."
        )
    elif _looked_for_copies(group) and "new" not in left_out:
        notes.append("new: on images of which no copy, identical or near, trained or validated.")
    over = _spread(group)
    interval = f"95 % CI: bootstrap over {UNITS[group.task]}, {RESAMPLES:,} resamples." if _has_intervals(group) else ""
    spread = f"± sd: of the scores of {over} (n − 1)." if over else ""
    notes += [" ".join(filter(None, (interval, spread)))] if interval or spread else []
    if any(run.device == "cpu" for run in group.runs) and "gpus" not in left_out:
        notes.append("GPUs: “2 CPU” means two processes on CPUs.")
    first = f"Means over test {CASES[group.task]}, weights of {_weights_of(group)}."
    leaks = "† Published figures: October 2024 course project, on a split that leaks: no target for another."
    return _with_cautions(group, first, notes, leaks)


def _with_cautions(group: Group, first: str, notes: Sequence[str], leaks: str) -> tuple[str, ...]:
    """The notes, and those on what keeps rows from being compared; `leaks` where published figures stand beside."""
    published = any(entry.model in PUBLISHED for entry in group.entries)
    return (first, *_lost(group), *notes, *_few(group), *_unequal(group), *([leaks] if published else []))


def _few(group: Group) -> Iterator[str]:
    """A word of caution where bootstrap intervals are known to be too narrow."""
    tested = [entry.n for entry in group.entries if entry.n is not None]
    if _has_intervals(group) and tested and min(tested) < FEW:
        yield f"Of so few test {CASES[group.task]} ({min(tested)}) a bootstrap interval is too narrow."


def _weights_of(group: Group) -> str:
    runs = [run for entry in group.entries for run in entry.runs if not run.weights_lost]
    if not runs:
        return "the last epoch"
    return weights(sorted({run.chosen_by for run in runs if run.chosen_by}))


def _lost(group: Group) -> Iterator[str]:
    """Runs whose scores are those of another epoch than the others'."""
    for damage in get_args(Damage):
        if names := [run.run for entry in group.entries for run in entry.lost if run.weights_lost == damage]:
            yield f"{listed(names, 6)}: {describe_lost_weights(damage, 'its' if len(names) == 1 else 'their')}."


def _looked_for_copies(group: Group) -> bool:
    return any("accuracy_new" in entry.cases.values for entry in group.entries)


def _has_intervals(group: Group) -> bool:
    main = [entry.statistics.get(group.main) for entry in group.entries]
    return any(found is not None and found.low is not None for found in main)


def _spread(group: Group) -> str:
    return " or ".join(sorted({entry.sd_over for entry in group.entries if entry.sd_over}))


def weights(chosen: Sequence[str]) -> str:
    """Of which epoch the tested weights are, by what chose it."""
    by_score = [by for by in chosen if by != _LAST_EPOCH]
    if chosen and not by_score:
        return "the last epoch (there was no validation part)"
    best = "the best epoch" + (f" (chosen by {' or '.join(by_score)})" if by_score else "")
    if _LAST_EPOCH in chosen:
        best += ", or of the last one where there was no validation part"
    return f"{best}; last: with those of the last epoch"


def _surfaces(group: Group) -> Iterator[str]:
    if measured := sorted({run.surfaces for run in group.runs if run.surfaces}):
        yield (
            f"HD95 in mm, by {' or '.join(measured)}. Both empty: Dice 1, HD95 0; one empty: Dice 0, HD95 the diagonal"
            " of the volume (373.13 mm for BraTS)."
        )
    cleaned = [entry.name for entry in group.entries if any(run.cleaning for run in entry.runs)]
    if cleaned:
        yield f"Small pieces removed, by thresholds chosen on validation patients: {listed(cleaned)}."
    flipped = [entry.name for entry in group.entries if any(run.flips for run in entry.runs)]
    if flipped:
        yield f"Logits averaged over flips: {listed(flipped)}."


def _unequal(group: Group) -> Iterator[str]:
    """Notes on what makes rows of this table unequal."""
    if group.split_leaks:
        yield "This split leaks: test cases have near-copies in the training part, and every score is too good."
    tested = {entry.cases.identity for entry in group.entries if entry.cases.identity}
    if len(tested) > 1:
        yield (
            f"These runs were tested on {len(tested)} different sets of cases, which is part of why scores differ;"
            f" not compared with the others: {listed([entry.name for entry in group.elsewhere])}."
        )
    for entry in group.entries:
        if entry.cases.problem and len(entry.runs) > 1:
            yield f"{entry.name}: {entry.cases.problem}: no interval, and not compared."
        if entry.pooled:
            yield f"{entry.name}: its runs differ in {listed(entry.pooled)}."
        if entry.repeated:
            again = listed([run.run for run in entry.repeated])
            yield f"{entry.name}: a seed that was run again counts once, with its latest run; not counted: {again}."
    remarks: dict[str, list[str]] = {}
    for run in group.runs:
        for remark in run.remarks:
            remarks.setdefault(remark, []).append(run.run)
    for remark, names in remarks.items():
        yield f"{listed(names)}: {remark}."
    if skipped := [f"{run.run} ({run.skipped_steps})" for run in group.runs if run.skipped_steps]:
        yield f"Steps left out, since loss or gradients were not finite: {listed(skipped)}."
    if early := [f"{run.run} ({run.epochs})" for run in group.runs if run.stopped_early]:
        yield f"Training ended early, after the epoch in brackets: {listed(early)}."
