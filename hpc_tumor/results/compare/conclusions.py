"""Conclusions of a comparison as sentences: the best entry, deciding cases, and the controls without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from hpc_tumor.results.compare.comparison import MOST_TESTED, Group
from hpc_tumor.results.compare.disagreement import DecidingCase, Disagreement
from hpc_tumor.results.compare.measures import CASES, measure
from hpc_tumor.results.compare.paired import Difference, p_value
from hpc_tumor.vocabulary import CONTROLS, listed, plural, series

Verdict = Literal["better", "not shown", "worse"]
_MOST_OTHERS = 6  # entries of each kind named in the sentence on the best one
_MOST_NAMED = 20  # entries of each kind named in the sentence on a control
_FEW = 5  # deciding cases that are named; more are only counted


def conclusions(group: Group) -> tuple[str, ...]:
    """Return sentences on the best entry, and on entries that beat the controls, with their significance."""
    return (*_best(group), *_two_bests(group), *_against_controls(group))


def verdict(test: Difference) -> Verdict:
    """Return the verdict of an entry's test against a control.

    Better and worse need a significant test and a mean difference of the same sign.
    """
    if test.significant and test.effect > 0 and test.difference > 0:
        return "better"
    return "worse" if test.significant and test.effect < 0 and test.difference < 0 else "not shown"


def method(group: Group) -> str:
    """Name the test between entries."""
    count = len(group.tests)
    name = {"classification": "McNemar", "segmentation": "Wilcoxon signed-rank"}[group.task]
    many = f" Only the best {MOST_TESTED} of {len(group.alike)} entries." if len(group.alike) > MOST_TESTED else ""
    return f"{name} test over {group.units}, Holm-corrected over {count} {plural(count, 'test')}.{many}"


def _best(group: Group) -> Iterator[str]:
    if len(group.entries) < 2:
        return
    tests = [test for test in group.tests if test.score == group.main]
    if not tests:
        yield "Not compared: no two entries have scores on the same test cases."
        return
    names = [entry.name for entry in group.compared]
    best = max(range(len(names)), key=lambda index: group.compared[index].score or 0)
    better: list[str] = []
    not_shown: list[str] = []
    against: list[str] = []
    for index in sorted(range(len(names)), key=lambda index: -(group.compared[index].score or 0)):
        test = next((candidate for candidate in tests if {candidate.first, candidate.second} == {best, index}), None)
        if test is not None:
            # The entry with the higher mean may be worse on most cases and much better on a few.
            ahead = (test.effect if test.first == best else -test.effect) > 0
            target = not_shown if not test.significant else better if ahead else against
            target.append(f"{names[index]} ({_p(test)})")
    others = len(group.alike) < len(group.entries)
    among = f" of the {len(group.alike)} tested on the same cases" if others else ""
    parts = [f"{names[best]} has the highest {measure(group.task, group.main).title}{among}"]
    if better:
        parts.append(f"better than {listed(better, _MOST_OTHERS)}")
    if against:
        parts.append(f"but worse for most {group.units} than {listed(against, _MOST_OTHERS)}")
    if not_shown:
        parts.append(f"not shown to be better than {listed(not_shown, _MOST_OTHERS)}")
    yield f"{'; '.join(parts)}. {method(group)}"


def _two_bests(group: Group) -> Iterator[str]:
    disagreement = group.disagreement
    if disagreement is None:
        return
    names = group.compared[disagreement.by_score].name, group.compared[disagreement.by_rank].name
    metric = measure(group.task, group.main)
    yield (
        f"By BraTS ranks the best is {names[1]} (mean rank {_distinct(*disagreement.mean_ranks[::-1], 2)}),"
        f" by {metric.title} {names[0]} ({_distinct(*disagreement.means, 3)})."
        f" {_what_decides(group, disagreement, names)}"
    )


def _distinct(first: float, second: float, digits: int) -> str:
    """Return `0.891 against 0.856`, with up to three more `digits` if needed to show a difference."""
    for count in range(digits, digits + 4):
        text = f"{first:.{count}f} against {second:.{count}f}"
        if f"{first:.{count}f}" != f"{second:.{count}f}":
            break
    return text


def _what_decides(group: Group, disagreement: Disagreement, names: tuple[str, str]) -> str:
    """Name the few cases without which the order of the two is reversed; else their number and the deciding scores."""
    metric, cases = measure(group.task, group.main), CASES[group.task]
    by_score, by_rank = disagreement.score_cases or (), disagreement.rank_cases or ()
    if _few(by_score, disagreement.n) and not (_few(by_rank, disagreement.n) and len(by_rank) < len(by_score)):
        return _decide(
            by_score, cases, f"{names[1]} has a higher {metric.title} than {names[0]}", metric.title, metric.show
        )
    if _few(by_rank, disagreement.n):
        return _decide(
            by_rank, cases, f"{names[0]} has a better mean rank than {names[1]}", "rank", lambda value: f"{value:.1f}"
        )
    why = listed([measure(group.task, name).title for name in disagreement.ranks_better_in], _MOST_OTHERS)
    ranked = f"{names[1]} ranks better by {why}"
    if disagreement.score_cases is None:
        return f"{names[0]} does not have the lower {metric.title} on any patient; {ranked}."
    first = f" (most of all {', '.join(case.case for case in by_score[:3])})" if len(by_score) > 3 else ""
    return (
        f"This is not due to a few {cases}: {names[1]} has a higher {metric.title} than {names[0]} only without"
        f" {len(by_score)} of {disagreement.n}{first}; {ranked}."
    )


def _few(cases: Sequence[DecidingCase], n: int) -> bool:
    return 0 < len(cases) <= _FEW and 2 * len(cases) < n


def _decide(cases: Sequence[DecidingCase], unit: str, then: str, title: str, show: Callable[[float], str]) -> str:
    count = f"{len(cases)} {unit} decide" if len(cases) > 1 else f"One {unit.removesuffix('s')} decides"
    descriptions = [_case(case, "" if index else f"{title} ", show) for index, case in enumerate(cases)]
    return f"{count}: without {', '.join(descriptions)}, {then}."


def _case(case: DecidingCase, title: str, show: Callable[[float], str]) -> str:
    """Return `patient-3 (Dice 0.912 against 0.310, ET missed)`."""
    values = f"{title}{show(case.values[0])} against {show(case.values[1])}"
    return f"{case.case} ({', '.join([values, *(f'{name} {fault}' for name, fault in case.faults.items())])})"


def _against_controls(group: Group) -> Iterator[str]:
    if group.task != "classification":
        return
    tests = group.control_tests
    beaten = [name for name, of_entries in tests.items() if {*map(verdict, of_entries.values())} == {"better"}]
    together: dict[tuple[str, ...], list[str]] = {}  # those of `beaten` with which the same networks were compared
    for name in beaten:
        together.setdefault(tuple(tests[name]), []).append(name)
    others = [[name] for name in tests if name not in beaten]
    sentences = [_who_beats_them(group, names) for names in (*together.values(), *others)]
    yield from (*sentences[:-1], *(f"{last} {_how(group)}" for last in sentences[-1:]))
    if behind := _not_beaten(group):
        yield f"Not shown to be better than a control, which has no network: {listed(behind, _MOST_NAMED)}."
    if missing := [CONTROLS[name] for name in CONTROLS if name not in tests]:
        yield f"Not compared with {series(missing, 'or')}: no run recorded these controls."
    yield from _not_compared(group)


def _not_beaten(group: Group) -> list[str]:
    """Name each entry that is not better than all controls, with these controls: `vit (file facts, intensities)`."""
    behind: dict[str, list[str]] = {}
    for control, of_entries in group.control_tests.items():
        for entry, test in of_entries.items():
            if verdict(test) != "better":
                behind.setdefault(entry, []).append(CONTROLS[control])
    return [f"{entry.name} ({', '.join(behind[entry.name])})" for entry in group.entries if entry.name in behind]


def _not_compared(group: Group) -> Iterator[str]:
    """Name the entries that lack tests which others have, by the controls that they lack."""
    without: dict[tuple[str, ...], list[str]] = {}
    for entry in group.entries:
        lacking = tuple(
            CONTROLS[name] for name, of_entries in group.control_tests.items() if entry.name not in of_entries
        )
        without.setdefault(lacking, []).append(entry.name)
    for controls, names in without.items():
        if controls:
            unknown = listed(names, _MOST_NAMED)
            yield f"Not compared with {series(controls, 'or')}, unknown for their test images: {unknown}."


def _who_beats_them(group: Group, controls: Sequence[str]) -> str:
    """List the networks by verdict on `controls` with their p-values, or only the largest p if all beat all of them."""
    tests = group.control_tests[controls[0]]
    than = series([_control(group, name) for name in controls])
    names: dict[Verdict, list[str]] = {"better": [], "not shown": [], "worse": []}
    for name in sorted(tests, key=lambda name: (-tests[name].difference, name)):
        names[verdict(tests[name])].append(name)
    better, not_shown, worse = (
        listed([f"{name} ({_p(tests[name])})" for name in names[kind]], _MOST_NAMED)
        for kind in ("better", "not shown", "worse")
    )
    every = [test for name in controls for test in group.control_tests[name].values()]
    if len(tests) == 1:
        ((name, test),) = tests.items()
        words = {"better": "is better", "not shown": "is not shown to be better", "worse": "is worse"}
        return f"{name} {words[verdict(test)]} than {than}: {_at_most(every)}."
    all_of_them = f"{'Both' if len(tests) == 2 else f'All {len(tests)}'} networks are"
    if len(names["better"]) == len(tests):
        return f"{all_of_them} better than {than}: {_at_most(every)}."
    if len(names["worse"]) == len(tests):
        return f"{all_of_them} worse than {than}: {worse}."
    behind = f"; worse: {worse}" if worse else ""
    if not better:
        return f"No network is shown to be better than {than}: {not_shown}{behind}."
    unsure = f"; not shown to be better: {not_shown}" if not_shown else ""
    return f"Against {than}: better: {better}{unsure}{behind}."


def _control(group: Group, name: str) -> str:
    """Return `the file-facts control (accuracy 54.0 %)`; without a score if it is unknown for the compared entries."""
    metric, cases = measure(group.task, group.main), group.controls.get(name)
    mean = None if cases is None else cases.mean(group.main)
    value = "" if mean is None else f" ({metric.title} {metric.show(mean)}{' %' * (metric.form == 'percent')})"
    return f"the {CONTROLS[name].replace(' ', '-')} control{value}"


def _how(group: Group) -> str:
    count = sum(map(len, group.control_tests.values()))
    parts = ["Same test" if group.tests else f"McNemar test over {group.units}"]
    if len(group.alike) < len(group.entries):
        parts.append("each on its own test images")
    if count > 1:
        parts.append(f"Holm-corrected over these {count} tests")
    return f"{', '.join(parts)}."


def _at_most(tests: Sequence[Difference]) -> str:
    largest = max(tests, key=lambda test: test.p_holm)
    return _p(largest) if len(tests) == 1 else f"each {_p(largest, '≤')}"


def _p(test: Difference, sign: str = "=") -> str:
    return f"p {p_value(test.p_holm)}" if test.p_holm < 0.001 else f"p {sign} {test.p_holm:.3f}"
