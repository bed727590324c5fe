"""Sentences on what a comparison shows: who is ahead, which cases decide, and who beats the nearest neighbour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from hpc_tumor.results.compare.comparison import MOST_TESTED, Group
from hpc_tumor.results.compare.disagreement import DecidingCase, Disagreement
from hpc_tumor.results.compare.measures import CASES, measure
from hpc_tumor.results.compare.paired import Difference, p_value
from hpc_tumor.vocabulary import listed, plural

Verdict = Literal["better", "not shown", "worse"]
_MOST_OTHERS = 6  # entries that the sentence on the best one names of each kind
_MOST_NAMED = 20  # entries that the sentence on the nearest neighbour names of each kind
_FEW = 5  # cases that are named where they decide; more of them are counted


def conclusions(group: Group) -> tuple[str, ...]:
    """In a few sentences: who is ahead by the main score, of whom that can be said, and whether it says anything."""
    return (*_best(group), *_two_bests(group), *_against_neighbour(group))


def verdict(test: Difference) -> Verdict:
    """Return what the test of an entry against the nearest neighbour shows.

    Better, or worse, on significantly many images and in the mean over all of them.
    """
    if test.significant and test.effect > 0 and test.difference > 0:
        return "better"
    return "worse" if test.significant and test.effect < 0 and test.difference < 0 else "not shown"


def method(group: Group) -> str:
    """Name the test by which entries were compared with each other."""
    count = len(group.tests)
    name = "McNemar over groups of copies" if group.task == "classification" else "Paired Wilcoxon over patients"
    many = f" Of {len(group.alike)} entries the best {MOST_TESTED}." if len(group.alike) > MOST_TESTED else ""
    return f"{name}, Holm-corrected over {count} {plural(count, 'test')}.{many}"


def _best(group: Group) -> Iterator[str]:
    """The entry with the largest main score against the others."""
    if len(group.entries) < 2:
        return
    tests = [test for test in group.tests if test.score == group.main]
    if not tests:
        yield "Not compared: no two entries have scores of the same test cases."
        return
    names = [entry.name for entry in group.compared]
    best = max(range(len(names)), key=lambda index: group.compared[index].score or 0)
    better: list[str] = []
    not_shown: list[str] = []
    against: list[str] = []
    for index in sorted(range(len(names)), key=lambda index: -(group.compared[index].score or 0)):
        test = next((one for one in tests if {one.first, one.second} == {best, index}), None)
        if test is not None:
            # The larger mean may be that of the one which is worse on most cases, and much better on a few.
            ahead = (test.effect if test.first == best else -test.effect) > 0
            said = not_shown if not test.significant else better if ahead else against
            said.append(f"{names[index]} ({_p(test)})")
    others = len(group.alike) < len(group.entries)
    among = f" of the {len(group.alike)} that were tested on the same cases" if others else ""
    parts = [f"{names[best]} has the largest {measure(group.task, group.main).title}{among}"]
    if better:
        parts.append(f"better than {listed(better, _MOST_OTHERS)}")
    if against:
        parts.append(f"but on most {CASES[group.task]} worse than {listed(against, _MOST_OTHERS)}")
    if not_shown:
        parts.append(f"not shown to be better than {listed(not_shown, _MOST_OTHERS)}")
    yield f"{'; '.join(parts)}. {method(group)}"


def _two_bests(group: Group) -> Iterator[str]:
    """Sentence on the two bests, where ranks name another one: by how much, and the cases that decide."""
    found = group.disagreement
    if found is None:
        return
    names = group.compared[found.by_score].name, group.compared[found.by_rank].name
    shown = measure(group.task, group.main)
    yield (
        f"By BraTS ranks the best is {names[1]} (mean rank {_told_apart(*found.mean_ranks[::-1], 2)}),"
        f" by {shown.title} {names[0]} ({_told_apart(*found.means, 3)})."
        f" {_what_decides(group, found, names)}"
    )


def _told_apart(first: float, second: float, digits: int) -> str:
    """`0.891 against 0.856`, with as many digits as tell the two apart, or three more than asked for."""
    for count in range(digits, digits + 4):
        text = f"{first:.{count}f} against {second:.{count}f}"
        if f"{first:.{count}f}" != f"{second:.{count}f}":
            break
    return text


def _what_decides(group: Group, found: Disagreement, names: tuple[str, str]) -> str:
    """The few cases without which the order of the two turns; else how many, and which scores tell them apart."""
    shown, unit = measure(group.task, group.main), CASES[group.task]
    by_score, by_rank = found.score_cases or (), found.rank_cases or ()
    if _few(by_score, found.n) and not (_few(by_rank, found.n) and len(by_rank) < len(by_score)):
        return _decide(
            by_score, unit, f"{names[1]} has a larger {shown.title} than {names[0]}", shown.title, shown.show
        )
    if _few(by_rank, found.n):
        return _decide(
            by_rank, unit, f"{names[0]} has a better mean rank than {names[1]}", "rank", lambda value: f"{value:.1f}"
        )
    why = listed([measure(group.task, name).title for name in found.ranks_better_in], _MOST_OTHERS)
    ranked = f"{names[1]} ranks better by {why}"
    if found.score_cases is None:
        return f"On no single patient has {names[0]} the smaller {shown.title}; {ranked}."
    first = f" (it gains most without {', '.join(case.case for case in by_score[:3])})" if len(by_score) > 3 else ""
    return (
        f"This is not due to a few {unit}: {names[1]} has a larger {shown.title} than {names[0]} only without"
        f" {len(by_score)} of {found.n}{first}; {ranked}."
    )


def _few(cases: Sequence[DecidingCase], n: int) -> bool:
    return 0 < len(cases) <= _FEW and 2 * len(cases) < n


def _decide(cases: Sequence[DecidingCase], unit: str, then: str, title: str, show: Callable[[float], str]) -> str:
    count = f"{len(cases)} {unit} decide" if len(cases) > 1 else f"One {unit.removesuffix('s')} decides"
    named = [_case(case, "" if index else f"{title} ", show) for index, case in enumerate(cases)]
    return f"{count}: without {', '.join(named)}, {then}."


def _case(case: DecidingCase, title: str, show: Callable[[float], str]) -> str:
    """`patient-3 (Dice 0.912 against 0.310, ET missed)`."""
    values = f"{title}{show(case.values[0])} against {show(case.values[1])}"
    return f"{case.case} ({', '.join([values, *(f'{name} {fault}' for name, fault in case.faults.items())])})"


def _against_neighbour(group: Group) -> Iterator[str]:
    """Sentences on the networks that are better than the nearest neighbour, a low bar, and those that are not."""
    if group.task != "classification":
        return
    tests = group.neighbour_tests
    if not tests:
        yield "Not compared with the nearest neighbour: no run recorded its answers."
        return
    names: dict[Verdict, list[str]] = {"better": [], "not shown": [], "worse": []}
    for name in sorted(tests, key=lambda name: (-tests[name].difference, name)):
        names[verdict(tests[name])].append(name)
    yield f"{_who_beats_it(group, names)} {_how(group)}"
    if missing := [entry.name for entry in group.entries if entry.name not in tests]:
        yield f"Not compared with it, as its answers for their test images are unknown: {listed(missing, _MOST_NAMED)}."


def _who_beats_it(group: Group, names: Mapping[Verdict, Sequence[str]]) -> str:
    """The networks by verdict, each with its p; where all are better, the largest p."""
    tests, shown = group.neighbour_tests, measure(group.task, group.main)
    near = group.neighbour.mean(group.main) if group.neighbour is not None else None
    value = "" if near is None else f" ({shown.title} {shown.show(near)}{' %' * (shown.form == 'percent')})"
    than = f"the nearest neighbour, which learns nothing{value}"
    better, not_shown, worse = (
        listed([f"{name} ({_p(tests[name])})" for name in names[kind]], _MOST_NAMED)
        for kind in ("better", "not shown", "worse")
    )
    if len(tests) == 1:
        ((name, test),) = tests.items()
        words = {"better": "is better", "not shown": "is not shown to be better", "worse": "is worse"}
        return f"{name} {words[verdict(test)]} than {than}: {_p(test)}."
    all_of_them = f"{'Both' if len(tests) == 2 else f'All {len(tests)}'} networks are"
    if len(names["better"]) == len(tests):
        return f"{all_of_them} better than {than}: {_at_most(tests)}."
    if len(names["worse"]) == len(tests):
        return f"{all_of_them} worse than {than}: {worse}."
    behind = f"; worse: {worse}" if worse else ""
    if not better:
        return f"No network is shown to be better than {than}: {not_shown}{behind}."
    unsure = f"; not shown to be better: {not_shown}" if not_shown else ""
    return f"Against {than}: better: {better}{unsure}{behind}."


def _how(group: Group) -> str:
    """Name their test; in few words where the sentence on the best one has said it."""
    tests = group.neighbour_tests
    parts = ["Tested likewise" if group.tests else "McNemar over groups of copies"]
    if len(group.alike) < len(group.entries):
        parts.append("each on its own test images")
    if len(tests) > 1:
        parts.append(f"Holm-corrected over these {len(tests)} tests")
    return f"{', '.join(parts)}."


def _at_most(tests: Mapping[str, Difference]) -> str:
    """The largest p as a bound on them all."""
    largest = max(tests.values(), key=lambda test: test.p_holm)
    return f"each {_p(largest, '≤')}"


def _p(test: Difference, sign: str = "=") -> str:
    return f"p {p_value(test.p_holm)}" if test.p_holm < 0.001 else f"p {sign} {test.p_holm:.3f}"
