"""What is to be known of a table: what every figure is a mean of, what keeps rows from being compared, what follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpc_tumor.results.comparison import MOST_TESTED, Group
from hpc_tumor.results.formats import p_value
from hpc_tumor.results.measures import CASES, measure
from hpc_tumor.results.paired import PairedTest
from hpc_tumor.results.published import LEAKS, PUBLISHED
from hpc_tumor.results.statistics import RESAMPLES

_LAST_EPOCH = "last epoch"  # what chose the weights where nothing else could


def group_notes(group: Group, brief: bool) -> tuple[str, ...]:
    """What every figure of the table is a mean of, and what keeps its rows from being compared."""
    unit, chosen = CASES[group.task], sorted({run.chosen_by for run in group.runs if run.chosen_by})
    notes = [f"Scores: means over the test {unit}, with the weights of {weights(chosen)}."]
    if group.task == "segmentation":
        notes[0] += " Dice: mean over the labels NCR, ED and ET" + ("; more is in the files." if brief else ".")
        notes += list(_surfaces(group))
    else:
        notes[0] += " Train: accuracy in the last epoch; conf.: mean of the largest softmax value."
        if any("accuracy_new" in entry.cases.values for entry in group.entries):
            notes.append("New: accuracy on the test images of which no copy, identical or near, trained or validated.")
    if any(group.main in entry.statistics and entry.statistics[group.main].low is not None for entry in group.entries):
        what = "groups of duplicate images" if group.task == "classification" else "test patients"
        notes.append(f"95 % CI: percentile bootstrap of the mean over {what}, {RESAMPLES:,} resamples.")
    if over := sorted({entry.sd_over for entry in group.entries if entry.sd_over}):
        notes.append(f"± sd: standard deviation of the runs' scores over {' or '.join(over)} (n − 1); no interval.")
    if any(run.device == "cpu" for run in group.runs) and brief:
        notes.append("GPUs: “2 CPU” means two processes on CPUs.")
    if group.split_leaks:
        notes.append("This split leaks: test cases have near-copies in the training part, and every score is too good.")
    notes += list(_unequal(group))
    if any(entry.model in PUBLISHED for entry in group.entries):
        notes.append(("† " if brief else "") + LEAKS[group.task])
    return tuple(notes)


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
        yield f"Small pieces removed, by thresholds chosen on validation patients: {', '.join(cleaned)}."
    flipped = [entry.name for entry in group.entries if any(run.flips for run in entry.runs)]
    if flipped:
        yield f"Logits averaged over flips: {', '.join(flipped)}."


def _unequal(group: Group) -> Iterator[str]:
    """What makes rows of this table unequal."""
    tested = {entry.cases.identity for entry in group.entries if entry.cases.identity}
    if len(tested) > 1:
        names = ", ".join(entry.name for entry in group.elsewhere)
        yield (
            f"These runs were tested on {len(tested)} different sets of cases, which is part of why scores differ;"
            f" not compared with the others: {names}."
        )
    for entry in group.entries:
        if entry.cases.problem and len(entry.runs) > 1:
            yield f"{entry.name}: {entry.cases.problem}: no interval, and not compared."
        if entry.pooled:
            yield f"{entry.name}: its runs differ in {', '.join(entry.pooled[:6])}."
        if entry.repeated:
            again = ", ".join(run.run for run in entry.repeated)
            yield f"{entry.name}: a seed that was run again counts once, with its latest run; not counted: {again}."
    for run in group.runs:
        for remark in run.remarks:
            yield f"{run.run}: {remark}."
        if run.skipped_steps:
            yield f"{run.run}: {run.skipped_steps} steps were left out, since loss or gradients were not finite."
        if run.stopped_early:
            yield f"{run.run}: training ended early, after epoch {run.epochs}."


def conclusions(group: Group) -> tuple[str, ...]:
    """In a sentence or two: who is ahead by the main score, and of whom that can be said."""
    tests = [test for test in group.tests if test.score == group.main]
    if not tests:
        return ()
    names = [entry.name for entry in group.compared]
    best = max(range(len(names)), key=lambda index: group.compared[index].score or 0)
    better: list[tuple[str, PairedTest | None]] = []
    open_: list[tuple[str, PairedTest | None]] = []
    for index, name in enumerate(names):
        if index == best:
            continue
        test = next((one for one in tests if {one.first, one.second} == {best, index}), None)
        (better if test is not None and test.significant else open_).append((name, test))
    title = measure(group.task, group.main).title
    parts = [f"{names[best]} has the largest {title}"]
    if better:
        parts.append("better than " + ", ".join(f"{name} ({_p(test)})" for name, test in better))
    if open_:
        parts.append("not shown to be better than " + ", ".join(f"{name} ({_p(test)})" for name, test in open_))
    return (f"{'; '.join(parts)}. {method(group)}",)


def _p(test: PairedTest | None) -> str:
    if test is None:
        return "no test"
    return f"p {p_value(test.p_holm)}" if test.p_holm < 0.001 else f"p = {test.p_holm:.3f}"


def method(group: Group) -> str:
    """How entries were tested against each other."""
    count = len(group.tests)
    name = "exact McNemar over groups of copies" if group.task == "classification" else "paired Wilcoxon over patients"
    many = f" Of {len(group.entries)} entries the best {MOST_TESTED}." if len(group.entries) > MOST_TESTED else ""
    return f"{name[0].upper()}{name[1:]}, Holm-corrected over {count} test{'s' * (count != 1)}.{many}"
