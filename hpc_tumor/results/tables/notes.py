"""Notes below a table: how its scores were computed, and what limits comparing its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import get_args

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.measures import CASES
from hpc_tumor.results.compare.published import LEAKS, PUBLISHED
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.run_dir import Damage, describe_lost_weights
from hpc_tumor.vocabulary import counted, listed

FEW = 10  # test cases; below, bootstrap intervals are unreliable
_LAST_EPOCH = "last epoch"  # `chosen_by` of runs without a validation part


def group_notes(group: Group) -> tuple[str, ...]:
    """Return the notes of the full tables."""
    first = f"Scores: means over the test {CASES[group.task]}, with the weights of {_weights_of(group)}."
    notes: list[str] = []
    if group.task == "segmentation":
        first += " Dice: mean over the labels NCR, ED and ET."
        notes += _surfaces(group)
    else:
        first += " Train: accuracy in the last epoch; confidence: mean of the largest softmax value."
        if _looked_for_copies(group):
            notes.append("New: test images without an exact or near duplicate in training or validation.")
        notes += _patients(group)
    if _has_intervals(group):
        without = " None for ECE." if group.task == "classification" else ""
        notes.append(f"95 % CI: percentile bootstrap of the mean over {group.units}, {RESAMPLES:,} resamples.{without}")
    if over := _spread(group):
        notes.append(f"± sd: standard deviation of the scores over {over} (n − 1); not an interval.")
    return _with_cautions(group, first, notes, LEAKS[group.task])


def brief_notes(group: Group, left_out: Collection[str] = ()) -> tuple[str, ...]:
    """Return shorter notes for a terminal, without those on the columns `left_out`, by key."""
    notes: list[str] = []
    if group.task == "segmentation":
        notes.append(
            "Dice, HD95 (mm), NSD: means over NCR, ED and ET. HD95 of a missed tumour: the diagonal of the volume."
            if any(run.surfaces for run in group.runs)
            else "Dice: mean over NCR, ED and ET."
        )
    elif _looked_for_copies(group) and "new" not in left_out:
        notes.append("new: test images without an exact or near duplicate in training or validation.")
    notes += _patients(group, left_out)
    over = _spread(group)
    interval = f"95 % CI: bootstrap over {group.units}, {RESAMPLES:,} resamples." if _has_intervals(group) else ""
    spread = f"± sd: over {over} (n − 1)." if over else ""
    notes += [" ".join(filter(None, (interval, spread)))] if interval or spread else []
    if any(run.device == "cpu" for run in group.runs) and "gpus" not in left_out:
        notes.append("GPUs: “2 CPU” means two processes on CPUs.")
    first = f"Means over test {CASES[group.task]}, weights of {_weights_of(group)}."
    leaks = "† Published results: October 2024 course project, on a split that leaks; not comparable with other splits."
    return _with_cautions(group, first, notes, leaks)


def _with_cautions(group: Group, first: str, notes: Sequence[str], leaks: str) -> tuple[str, ...]:
    """Add the notes on what limits comparing the rows; `leaks` where there are published results."""
    published = any(entry.model in PUBLISHED for entry in group.entries)
    return (first, *_lost(group), *notes, *_few(group), *_unequal(group), *([leaks] if published else []))


def _few(group: Group) -> Iterator[str]:
    tested = [entry.n for entry in group.entries if entry.n is not None]
    noun = CASES[group.task].removesuffix("s")
    if _has_intervals(group) and tested and min(tested) < FEW:
        yield f"With only {counted(min(tested), f'test {noun}')} bootstrap intervals are too narrow."


def _weights_of(group: Group) -> str:
    runs = [run for entry in group.entries for run in entry.runs if not run.weights_lost]
    if not runs:
        return "the last epoch"
    return weights(sorted({run.chosen_by for run in runs if run.chosen_by}))


def _lost(group: Group) -> Iterator[str]:
    """Name runs scored with the weights of another epoch because those of the best are lost."""
    for damage in get_args(Damage):
        if names := [run.run for entry in group.entries for run in entry.lost if run.weights_lost == damage]:
            yield f"{listed(names, 6)}: {describe_lost_weights(damage, 'its' if len(names) == 1 else 'their')}."


def _looked_for_copies(group: Group) -> bool:
    return any("accuracy_new" in entry.cases.values for entry in group.entries)


def _patients(group: Group, left_out: Collection[str] = ()) -> Iterator[str]:
    """Explain scores of known patients, without those of columns `left_out`, and what counts as a patient."""
    if not any("accuracy_patients" in entry.cases.values for entry in group.entries):
        return
    texts = {
        "accuracy_known": "Known: test images of known patients.",
        "accuracy_patients": "Patients: one decision per known patient, by the mean probabilities of its test images;"
        " its class is that of most of them.",
        "": "In intervals and tests, an image of an unknown patient counts as a patient of its own, with its copies.",
    }
    yield " ".join(text for key, text in texts.items() if key not in left_out)


def _has_intervals(group: Group) -> bool:
    main = [entry.statistics.get(group.main) for entry in group.entries]
    return any(statistic is not None and statistic.low is not None for statistic in main)


def _spread(group: Group) -> str:
    return " or ".join(sorted({entry.sd_over for entry in group.entries if entry.sd_over}))


def weights(chosen: Sequence[str]) -> str:
    """Name the epoch of the tested weights, by what chose it."""
    by_score = [by for by in chosen if by != _LAST_EPOCH]
    if chosen and not by_score:
        return "the last epoch (there was no validation part)"
    best = "the best epoch" + (f" (chosen by {' or '.join(by_score)})" if by_score else "")
    if _LAST_EPOCH in chosen:
        best += ", or of the last epoch where there was no validation part"
    return f"{best}; last: weights of the last epoch"


def _surfaces(group: Group) -> Iterator[str]:
    if measured := sorted({run.surfaces for run in group.runs if run.surfaces}):
        yield (
            f"HD95 in mm, by {' or '.join(measured)}. Truth and prediction empty: Dice 1, HD95 0; only one of them:"
            " Dice 0, HD95 the diagonal of the volume (373.13 mm for BraTS)."
        )
    cleaned = [entry.name for entry in group.entries if any(run.cleaning for run in entry.runs)]
    if cleaned:
        yield f"Small pieces removed, with thresholds chosen on validation patients: {listed(cleaned)}."
    flipped = [entry.name for entry in group.entries if any(run.flips for run in entry.runs)]
    if flipped:
        yield f"Logits averaged over flips: {listed(flipped)}."


def _unequal(group: Group) -> Iterator[str]:
    if group.split_leaks:
        why = group.leakage or "test cases have near copies in the training part"
        if any(run.leak_found is not False for run in group.runs):
            yield f"This split leaks: {why}; all scores are too high."
        else:
            yield f"This split does not prevent leaks, but none was found: {why}."
    tested = {entry.cases.identity for entry in group.entries if entry.cases.identity}
    if earlier := group.without_patients:
        every = len(earlier) == len(group.entries)
        who = "These runs" if every else f"Runs of {listed([entry.name for entry in earlier])}"
        apart = "" if every or len(tested) > 1 else "; they are not compared with the others"
        yield f"{who} do not know the patients of their images: intervals and tests keep only copies together{apart}."
    if len(tested) > 1:
        yield (
            f"These runs were tested on {len(tested)} different sets of cases, so their scores are not all comparable;"
            f" not compared with the others: {listed([entry.name for entry in group.elsewhere])}."
        )
    for entry in group.entries:
        if entry.cases.problem and len(entry.runs) > 1:
            yield f"{entry.name}: {entry.cases.problem}; no interval, not compared."
        if entry.pooled:
            yield f"{entry.name}: runs differ in {listed(entry.pooled)}."
        if entry.repeated:
            repeated = listed([run.run for run in entry.repeated])
            yield f"{entry.name}: only the latest run of a seed and fold counts; superseded: {repeated}."
    remarks: dict[str, list[str]] = {}
    for run in group.runs:
        for remark in run.remarks:
            remarks.setdefault(remark, []).append(run.run)
    for remark, names in remarks.items():
        yield f"{listed(names)}: {remark}."
    if skipped := [f"{run.run} ({run.skipped_steps})" for run in group.runs if run.skipped_steps]:
        yield f"Steps skipped because loss or gradients were not finite: {listed(skipped)}."
    if early := [f"{run.run} ({run.epochs})" for run in group.runs if run.stopped_early]:
        yield f"Training stopped early, after the epoch in brackets: {listed(early)}."
