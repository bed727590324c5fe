"""Tables of paired tests, and of ranks with their stability."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.conclusions import method
from hpc_tumor.results.compare.measures import CASES, Measure, measure
from hpc_tumor.results.compare.paired import Difference, p_value
from hpc_tumor.results.compare.ranks import Ranking
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.results.tables.columns import whole
from hpc_tumor.table import NOTHING, Column, Table, fill
from hpc_tumor.vocabulary import CONTROLS, SIGNIFICANCE_LEVEL, counted

_MOST_PLACES = 7


@dataclass(frozen=True)
class Pair:
    """Two entries, or an entry and a control, by name, and their paired test on a score."""

    first: str
    second: str
    test: Difference
    score: Measure

    def signed(self, value: float) -> str:
        """Format a difference in the unit of its score."""
        return f"{100 * value:+.1f}" if self.score.form == "percent" else f"{value:+.3f}"

    @property
    def interval(self) -> str:
        low, high = self.test.low, self.test.high
        return "" if low is None or high is None else f"{self.signed(low)} to {self.signed(high)}"


_TESTS = {
    column.key: column
    for column in (
        Column("score", "left", key="score", cell=lambda pair: pair.score.heading),
        Column("first", "left", key="first", cell=lambda pair: pair.first),
        Column("second", "left", key="second", cell=lambda pair: pair.second),
        Column("difference", key="difference", cell=lambda pair: pair.signed(pair.test.difference)),
        Column("95 % CI", key="interval", cell=lambda pair: pair.interval),
        Column("better on", key="wins", cell=lambda pair: whole(pair.test.wins)),
        Column("worse on", key="losses", cell=lambda pair: whole(pair.test.losses)),
        Column("n", key="n", cell=lambda pair: whole(pair.test.n)),
        Column("p", key="p", cell=lambda pair: p_value(pair.test.p)),
        Column("p, Holm", key="p_holm", cell=lambda pair: p_value(pair.test.p_holm) + " *" * pair.test.significant),
        Column("effect size", key="effect", cell=lambda pair: f"{pair.test.effect:+.2f}"),
    )
}


def pairs(group: Group) -> list[Pair]:
    """List all pairs of entries, then each classifier against each control."""
    names = [entry.name for entry in group.compared]
    tests: list[tuple[str, str, Difference]] = [(names[test.first], names[test.second], test) for test in group.tests]
    for control, of_entries in group.control_tests.items():
        tests += [(name, CONTROLS[control], test) for name, test in of_entries.items()]
    return [Pair(first, second, test, measure(group.task, test.score)) for first, second, test in tests]


def differences_table(group: Group, shown: Sequence[Pair], keys: Iterable[str] = _TESTS) -> Table:
    """Build the table of paired tests: difference, p, effect size."""
    notes = list(_about_tests(group))
    every = len(pairs(group))
    if len(shown) < every:
        notes[0] = f"{len(shown)} of {every} tests are shown. {notes[0]}"
    return fill("Paired tests", [_TESTS[key] for key in keys], shown, notes, NOTHING)


def _about_tests(group: Group) -> Iterator[str]:
    images = group.task == "classification"
    name = method(group) if group.tests else f"McNemar test over {group.units}."
    against = [test for of_entries in group.control_tests.values() for test in of_entries.values()]
    if against:
        name += f" Against the controls without a network: Holm-corrected over these {counted(len(against), 'test')}."
    yield f"{name} *: p < 0.05 after correction. Paired by {'image' if images else 'patient'}, means over seeds."
    if images:
        yield (
            "McNemar: exact if all differences have the same size; otherwise (means over seeds or a unit's images) the"
            " test for clustered pairs (Durkalski 2003)."
        )
    yield (
        "Effect size: matched-pairs rank-biserial correlation, −1 to 1; 0: neither is better, 1: the first is better"
        " wherever they differ."
    )
    tests: Sequence[Difference] = group.tests or against
    if tests and 0.5 ** (tests[0].n - 1) * len(tests) > SIGNIFICANCE_LEVEL:
        yield (
            f"With {tests[0].n} {group.units} and {counted(len(tests), 'test')} no difference can be significant:"
            f" test on more {CASES[group.task]}, for example with folds."
        )


def ranks_table(group: Group) -> Table:
    """Build the table of ranks and their stability."""
    ranking, images = group.ranking, group.task == "classification"
    if ranking is None:
        return Table("Ranks", (), ())
    mean = measure(group.task, group.main)
    columns = [
        Column("model", "left", cell=lambda index: group.compared[index].name),
        Column("rank", cell=lambda index: f"{ranking.ranks[index]:g}"),
        Column("95 % CI", cell=lambda index: f"{ranking.low[index]:g}–{ranking.high[index]:g}"),
        Column(mean.heading, cell=lambda index: mean.show(ranking.mean_ranks[index]))
        if images
        else Column("mean rank", cell=lambda index: f"{ranking.mean_ranks[index]:.2f}"),
        *(_share(ranking, place) for place in range(min(len(group.compared), _MOST_PLACES))),
    ]
    order = sorted(range(len(group.compared)), key=lambda index: ranking.ranks[index])
    names = ", ".join(measure(group.task, name).title for name in group.ranked_by)
    method_note = f"Ranked as in BraTS: on each patient by {names}, then by the mean of these ranks."
    if images:
        method_note = f"Ranked by mean {names} over images."
    stability = f"Places and intervals: over {RESAMPLES:,} bootstrap resamples of {group.units}."
    return fill("Ranks and their stability", columns, order, (f"{method_note} {stability}",))


def _share(ranking: Ranking, place: int) -> Column:
    return Column(f"place {place + 1}, %", cell=lambda index: f"{100 * ranking.shares[index][place]:.0f}")
