"""A comparison: finished runs in groups of comparable runs, unfinished runs, and skipped folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

from hpc_tumor.results.compare.disagreement import Disagreement, disagreement
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.measures import CASES, COPIES, MAIN_SCORE, PATIENTS, measure
from hpc_tumor.results.compare.paired import Difference, PairedTest, differences, holm, paired_tests
from hpc_tumor.results.compare.ranks import Ranking, aggregate_then_rank, rank_then_aggregate
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.vocabulary import CONTROLS, REGIONS, counted

MOST_TESTED = 20  # best entries of which all pairs are tested


@dataclass(frozen=True)
class Group:
    """Comparable finished runs: same task, same data, same split. Entries are in the order of the models.

    Attributes:
        folds: number of folds of the split; None without folds.
        by: settings that distinguish entries; empty: all.
    """

    task: str
    split: str
    split_leaks: bool | None
    folds: int | None
    dataset: str | None
    store: str
    fingerprint: str | None
    entries: tuple[Entry, ...]
    by: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[RunResult, ...]:
        """All runs of the group, entry by entry, including superseded ones."""
        return tuple(run for entry in self.entries for run in entry.all_runs)

    @property
    def main(self) -> str:
        """The main score: mean Dice over the labels NCR, ED and ET, or accuracy."""
        return MAIN_SCORE[self.task]

    @cached_property
    def alike(self) -> tuple[Entry, ...]:
        """Entries tested on the most common set of test cases."""
        known = [entry.cases.comparable for entry in self.entries if entry.cases.problem is None]
        if not known:
            return ()
        usual = max(known, key=known.count)  # the first of equally common ones
        return tuple(entry for entry in self.entries if entry.cases.problem is None and entry.cases.comparable == usual)

    @cached_property
    def compared(self) -> tuple[Entry, ...]:
        """The best entries of `alike`, at most MOST_TESTED, in their order."""
        best = {id(entry) for entry in sorted(self.alike, key=lambda entry: -(entry.score or 0))[:MOST_TESTED]}
        return tuple(entry for entry in self.alike if id(entry) in best)

    @property
    def elsewhere(self) -> tuple[Entry, ...]:
        """Entries tested on other cases than those of `alike`."""
        usual = {entry.cases.comparable for entry in self.alike}
        return tuple(
            entry for entry in self.entries if entry.cases.problem is None and entry.cases.comparable not in usual
        )

    @property
    def units(self) -> str:
        """Units of intervals and tests of `alike`: patients, or duplicate groups of images of unknown patients."""
        known = any(entry.cases.by_patient and "accuracy_patients" in entry.cases.values for entry in self.alike)
        return PATIENTS if known or self.task == "segmentation" else COPIES

    @property
    def without_patients(self) -> tuple[Entry, ...]:
        """Entries of images some of whose runs did not record patients, as earlier versions did not."""
        images = self.entries if self.task == "classification" else ()
        return tuple(entry for entry in images if entry.cases.problem is None and not entry.cases.by_patient)

    @cached_property
    def tests(self) -> tuple[PairedTest, ...]:
        """Paired tests of the compared entries; `first` and `second` are indices into `compared`."""
        if len(self.compared) < 2:
            return ()
        names = self._common([self.main, *(f"dice_{region}" for region in REGIONS)])
        larger = [measure(self.task, name).larger_is_better for name in names]
        cases = [entry.cases for entry in self.compared]
        return tuple(paired_tests(cases, names, larger, self.task == "classification"))

    @cached_property
    def ranking(self) -> Ranking | None:
        """Ranks of the compared entries, in their order."""
        if len(self.compared) < 2:
            return None
        cases = [entry.cases for entry in self.compared]
        names = self.ranked_by
        if not names:
            return None
        if self.task == "classification":
            return aggregate_then_rank(cases, names[0])
        return rank_then_aggregate(cases, names, [measure(self.task, name).larger_is_better for name in names])

    @cached_property
    def ranked_by(self) -> list[str]:
        """Scores that decide the ranks: Dice and HD95 of WT, TC and ET, as far as all entries have them."""
        if self.task == "classification":
            return self._common([self.main])
        names = self._common([f"{score}_{region}" for score in ("dice", "hd95") for region in REGIONS])
        return names or self._common([self.main])

    @cached_property
    def disagreement(self) -> Disagreement | None:
        """The entry with the highest mean Dice and the first by BraTS ranks; None where they are the same."""
        if self.task != "segmentation" or self.ranking is None or not self._common([self.main]):
            return None
        return disagreement(
            [entry.cases for entry in self.compared],
            [entry.score or 0.0 for entry in self.compared],
            self.ranking.ranks,
            main=self.main,
            ranked_by=self.ranked_by,
            larger_is_better=[measure(self.task, name).larger_is_better for name in self.ranked_by],
        )

    @cached_property
    def controls(self) -> dict[str, TestCases]:
        """Predictions of the controls on the test images of `compared`, as far as a run recorded them."""
        known = self._controls.get(self.compared[0].cases.comparable, {}) if self.compared else {}
        return {name: known[name] for name in CONTROLS if name in known}

    @cached_property
    def control_tests(self) -> dict[str, dict[str, Difference]]:
        """Tests of the main score of each entry against each control on the same test images, by control and entry.

        All together are a separate family for Holm's correction. Controls that no run recorded are missing, and
        entries whose test images or controls are unknown.
        """
        tests = {name: self._tests_against(name) for name in CONTROLS}
        corrected = iter(holm([test.p for of_entries in tests.values() for test in of_entries.values()]))
        return {
            name: {entry: replace(test, p_holm=next(corrected)) for entry, test in of_entries.items()}
            for name, of_entries in tests.items()
            if of_entries
        }

    def _tests_against(self, control: str) -> dict[str, Difference]:
        """Test each entry against a control, uncorrected, in the order of the entries."""
        by_images: dict[tuple[str | None, bool], list[Entry]] = {}
        for entry in self.entries:
            if entry.cases.problem is None and self.main in entry.cases.values:
                by_images.setdefault(entry.cases.comparable, []).append(entry)
        tests: dict[str, Difference] = {}
        for images, entries in by_images.items():
            answers = self._controls.get(images, {}).get(control)
            if answers is None:
                continue
            results = differences(
                [entry.cases for entry in entries],
                [answers] * len(entries),
                self.main,
                larger_is_better=measure(self.task, self.main).larger_is_better,
                binary=True,
            )
            tests |= {entry.name: test for entry, test in zip(entries, results, strict=True) if test is not None}
        return {entry.name: tests[entry.name] for entry in self.entries if entry.name in tests}

    @cached_property
    def _controls(self) -> dict[tuple[str | None, bool], dict[str, TestCases]]:
        """Predictions of the controls, by the key of the test images; each by the first entry that has them."""
        answers: dict[tuple[str | None, bool], dict[str, TestCases]] = {}
        for entry in self.entries:
            if entry.cases.problem is None:
                known = answers.setdefault(entry.cases.comparable, {})
                known |= {name: cases for name, cases in entry.controls.items() if name not in known}
        return answers

    @property
    def title(self) -> str:
        """Task, data, split, leakage and number of test cases."""
        known = sorted({entry.n for entry in self.entries if entry.n is not None})
        counts = "–".join(f"{count:,}" for count in (known[:1] + known[-1:] if len(known) > 1 else known)) or "unknown"
        # Patients of some images are unknown, so an image split can only be called free of known leaks.
        clean = "does not leak" if self.task == "segmentation" else "no leak found"
        if self.split == "deduplicated":
            clean = "no duplicates across parts"
        leak = {True: "leaks", False: clean, None: "leakage unknown"}[self.split_leaks]
        noun = CASES[self.task] if known != [1] else CASES[self.task].removesuffix("s")
        fingerprint = f" {self.fingerprint[:12]}" if self.fingerprint else ""
        store = PurePath(self.store).name or self.store
        data = (f"{self.dataset}, {store}" if self.dataset else store) + fingerprint
        return (
            f"{self.task.capitalize()} · {data} · split {self.split}{self._of_folds()} ({leak}) · {counts} test {noun}"
            f"{self._of_known()}"
        )

    def _of_known(self) -> str:
        """Return `, 788 of 74 known patients` if this holds for all entries."""
        texts = {
            f", {entry.known.images.n:,} of {counted(entry.known.decisions.n, 'known patient')}" if entry.known else ""
            for entry in self.entries
        }
        return texts.pop() if len(texts) == 1 else ""

    @property
    def leakage(self) -> str | None:
        """Sentences on the copies and patients in two parts, of the folds if they differ; None if not recorded."""
        texts = dict.fromkeys(run.split_leakage for run in self.runs if run.split_leakage)
        return "; or ".join(texts) or None

    def _of_folds(self) -> str:
        seen = {fold for entry in self.entries for fold in entry.folds}
        if not seen:
            return ""
        if len(seen) == 1:
            return f", fold {min(seen)}" + ("" if self.folds is None else f" of {self.folds}")
        return f", {len(seen)}{'' if self.folds in (None, len(seen)) else f' of {self.folds}'} folds"

    def _common(self, names: list[str]) -> list[str]:
        return [name for name in names if all(name in entry.cases.values for entry in self.compared)]


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without a result.

    Attributes:
        state, reason: run state and its cause; None if unknown.
        best: best validation score so far, by the score `best_by`.
        heartbeat: seconds since 1970.
        config: settings by dotted name.
    """

    run: str
    path: str
    task: str | None
    model: str | None
    seed: int | None
    state: str | None
    reason: str | None
    epoch: int | None
    epochs: int | None
    best: float | None
    best_by: str | None
    best_epoch: int | None
    heartbeat: float | None
    skipped_steps: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class SkippedFolder:
    """A folder that is not a run directory, or whose result cannot be used, with the reason."""

    run: str
    path: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """All collected runs; `left_out` is the number of finished runs excluded by the selection."""

    groups: tuple[Group, ...] = ()
    unfinished: tuple[UnfinishedRun, ...] = ()
    skipped: tuple[SkippedFolder, ...] = ()
    left_out: int = 0

    @property
    def results(self) -> list[RunResult]:
        """All finished runs, group by group."""
        return [run for group in self.groups for run in group.runs]
