"""Tables of what can be said of the entries: paired tests, and ranks with their stability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.conclusions import method
from hpc_tumor.results.compare.measures import CASES, measure
from hpc_tumor.results.compare.paired import Difference
from hpc_tumor.results.compare.ranks import Ranking
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.results.tables.formats import p_value, percent, whole
from hpc_tumor.results.tables.making import plain_table
from hpc_tumor.table import Column, Table
from hpc_tumor.vocabulary import SIGNIFICANCE_LEVEL

_MOST_PLACES = 7


def tests_table(group: Group) -> Table:
    """All pairs of entries, and each classifier against the nearest neighbour: difference, p, effect size."""
    columns = [Column(name, "left", key=name) for name in ("score", "first", "second")]
    columns += [Column("difference", key="difference"), Column("95 % CI", key="interval")]
    columns += [Column("better on"), Column("worse on"), Column("n"), Column("p")]
    columns += [Column("p, Holm", key="p_holm"), Column("effect size", key="effect")]
    lines = []
    pairs: list[tuple[str, str, Difference]] = [
        (group.compared[test.first].name, group.compared[test.second].name, test) for test in group.tests
    ]
    pairs += [(name, "nearest neighbour", test) for name, test in group.neighbour_tests.items()]
    for first, second, test in pairs:
        shown = measure(group.task, test.score)
        factor, digits = (100, 1) if shown.form == "percent" else (1, 3)
        low, high = ("" if end is None else f"{factor * end:+.{digits}f}" for end in (test.low, test.high))
        lines.append((
            shown.heading, first, second,
            f"{factor * test.difference:+.{digits}f}", f"{low} to {high}" if low else "",
            whole(test.wins), whole(test.losses), whole(test.n),
            p_value(test.p), p_value(test.p_holm) + (" *" if test.significant else ""), f"{test.effect:+.2f}",
        ))  # fmt: skip
    return plain_table("Are the differences real?", columns, lines, tuple(_about_tests(group)))


def _about_tests(group: Group) -> Iterator[str]:
    unit = "groups of copies" if group.task == "classification" else "patients"
    each = "image by image" if group.task == "classification" else "patient by patient"
    how = method(group) if group.tests else "McNemar over groups of copies."
    if against := len(group.neighbour_tests):
        how += f" Against the nearest neighbour: Holm-corrected over these {against} test{'s' * (against != 1)}."
    yield f"{how} * below 0.05 after correction. What is compared are means over seeds, {each}."
    if group.task == "classification":
        yield (
            "McNemar: exact where all differences are equally large; else, of means over seeds or copies, that for"
            " clustered pairs (Durkalski 2003)."
        )
    yield (
        "Effect size: rank-biserial correlation of matched pairs, −1 to 1: 0 where neither is better, 1 where the first"
        " is better wherever they differ."
    )
    tests: Sequence[Difference] = group.tests or tuple(group.neighbour_tests.values())
    if tests and 0.5 ** (tests[0].n - 1) * len(tests) > SIGNIFICANCE_LEVEL:
        count = f"{len(tests)} test{'s' * (len(tests) != 1)}"
        yield (
            f"With {tests[0].n} {unit} and {count} no difference could be significant:"
            " test on more of them, for example by folds."
        )


def ranks_table(group: Group) -> Table:
    """Ranks and how stable they are."""
    ranking = group.ranking
    if ranking is None:
        return plain_table("Ranks", [], [], ())
    last = Column("accuracy %") if group.task == "classification" else Column("mean rank")
    columns = [Column("model", "left"), Column("rank"), Column("95 % CI"), last]
    columns += [Column(f"place {place}, %") for place in range(1, min(len(group.compared), _MOST_PLACES) + 1)]
    order = sorted(range(len(group.compared)), key=lambda index: ranking.ranks[index])
    lines = [_rank_line(group, ranking, index) for index in order]
    names = ", ".join(measure(group.task, name).title for name in group.ranked_by)
    how = f"Rank, then aggregate, as BraTS does: each patient ranks the entries by {names}; the mean of these decides."
    if group.task == "classification":
        how = f"Ranked by {names}, the mean over images."
    again = f"Places and interval: over {RESAMPLES:,} bootstrap resamples of the test {CASES[group.task]}."
    return plain_table("Ranks, and how stable they are", columns, lines, (f"{how} {again}",))


def _rank_line(group: Group, ranking: Ranking, index: int) -> tuple[str, ...]:
    mean = ranking.mean_ranks[index]
    shares = [f"{100 * share:.0f}" for share in ranking.shares[index][:_MOST_PLACES]]
    return (
        group.compared[index].name, f"{ranking.ranks[index]:g}", f"{ranking.low[index]:g}–{ranking.high[index]:g}",
        percent(mean) if group.task == "classification" else f"{mean:.2f}", *shares,
    )  # fmt: skip
