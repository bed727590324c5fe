"""Ranks by hand, and what must hold of them whatever the scores."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_tumor.results.compare.ranks import aggregate_then_rank, rank_then_aggregate
from hpc_tumor.results.read.cases import TestCases


def entry(groups: list[str] | None = None, **scores: list[float] | np.ndarray) -> TestCases:
    n = len(next(iter(scores.values())))
    values = {name: np.array(values, dtype=float) for name, values in scores.items()}
    names = tuple(f"case-{index:03}" for index in range(n))
    return TestCases(names, values, groups=None if groups is None else np.array(groups))


def test_rank_then_aggregate_by_hand() -> None:
    entries = [
        entry(dice=[0.9, 0.5, 0.7], hd95=[1.0, 9.0, 5.0]),  # Dice 1, 3, 1.5; HD95 1, 3, 2
        entry(dice=[0.8, 0.6, 0.7], hd95=[2.0, 8.0, 4.0]),  # Dice 2, 2, 1.5; HD95 2, 2, 1
        entry(dice=[0.7, 0.7, 0.6], hd95=[3.0, 1.0, 6.0]),  # Dice 3, 1, 3;   HD95 3, 1, 3
    ]
    ranking = rank_then_aggregate(entries, ["dice", "hd95"], [True, False])
    assert ranking.mean_ranks == pytest.approx((11.5 / 6, 10.5 / 6, 14 / 6))
    assert ranking.ranks == (2, 1, 3)
    assert (ranking.n, ranking.units) == (3, 3)


def test_the_mean_decides_where_cases_are_right_or_wrong() -> None:
    entries = [entry(accuracy=[1, 1, 0, 0]), entry(accuracy=[1, 1, 1, 0]), entry(accuracy=[0, 1, 1, 0])]
    ranking = aggregate_then_rank(entries, "accuracy")
    assert ranking.mean_ranks == (0.5, 0.75, 0.5)
    assert ranking.ranks == (2.5, 1, 2.5)


def test_less_is_better_for_distances() -> None:
    ranking = rank_then_aggregate([entry(hd95=[5.0, 6.0]), entry(hd95=[1.0, 2.0])], ["hd95"], [False])
    assert ranking.ranks == (2, 1)
    assert ranking.mean_ranks == (2, 1)
    assert rank_then_aggregate([entry(hd95=[5.0, 6.0]), entry(hd95=[1.0, 2.0])], ["hd95"], [False]).ranks == (2, 1)


def test_no_score_is_the_worst() -> None:
    ranking = rank_then_aggregate([entry(hd95=[np.nan, 1.0]), entry(hd95=[50.0, 2.0])], ["hd95"], [False])
    assert ranking.mean_ranks == (1.5, 1.5)


def test_equal_entries_share_ranks_and_places() -> None:
    values = np.random.default_rng(0).uniform(size=30)
    ranking = rank_then_aggregate([entry(dice=values), entry(dice=values), entry(dice=values - 1)], ["dice"], [True])
    assert ranking.ranks == (1.5, 1.5, 3)
    assert ranking.shares[0] == ranking.shares[1] == pytest.approx((0.5, 0.5, 0))
    assert ranking.shares[2] == pytest.approx((0, 0, 1))
    assert (ranking.low, ranking.high) == ((1.5, 1.5, 3), (1.5, 1.5, 3))


def test_a_clearly_better_entry_is_first_in_all_resamples() -> None:
    generator = np.random.default_rng(1)
    hard = generator.normal(0.7, 0.1, 60)
    entries = [entry(dice=hard + shift + generator.normal(0, 0.02, 60)) for shift in (0, 0.1, 0.001)]
    ranking = rank_then_aggregate(entries, ["dice"], [True])
    assert ranking.ranks[1] == 1
    assert ranking.shares[1][0] > 0.999
    assert (ranking.low[1], ranking.high[1]) == (1, 1)
    # The other two are nearly equal: neither place is sure.
    assert 0.01 < ranking.shares[0][1] < 0.99


def test_copies_make_places_no_surer() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.uniform(size=(2, 12))
    alone = rank_then_aggregate([entry(dice=first), entry(dice=second)], ["dice"], [True])
    groups = [f"g{index // 10:02}" for index in range(120)]
    copied = [entry(groups, dice=np.repeat(one, 10)) for one in (first, second)]
    ranking = rank_then_aggregate(copied, ["dice"], [True])
    assert (ranking.n, ranking.units) == (120, 12)
    assert ranking.shares == alone.shares
    assert ranking.mean_ranks == pytest.approx(alone.mean_ranks)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 25))
def test_permuting_entries_permutes_ranks(seed: int, n: int) -> None:
    values = np.random.default_rng(seed).uniform(size=(3, n)).round(1)
    entries = [entry(dice=row) for row in values]
    for ranking_of in (
        lambda some: rank_then_aggregate(some, ["dice"], [True]),
        lambda some: aggregate_then_rank(some, "dice"),
    ):
        expected = ranking_of(entries)
        assert sum(expected.ranks) == 6
        assert np.array(expected.shares).sum(0) == pytest.approx([1, 1, 1])
        assert np.array(expected.shares).sum(1) == pytest.approx([1, 1, 1])
        for order in permutations(range(3)):
            found = ranking_of([entries[index] for index in order])
            assert found.ranks == tuple(expected.ranks[index] for index in order)
            assert found.shares == tuple(expected.shares[index] for index in order)
            assert found.mean_ranks == pytest.approx([expected.mean_ranks[index] for index in order])
