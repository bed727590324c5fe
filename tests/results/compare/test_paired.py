"""Paired tests by hand, and what must hold of them whatever the scores."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_tumor.results.compare.paired import PairedTest, holm, paired_tests
from hpc_tumor.results.read.cases import TestCases

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def cases(values: list[float] | np.ndarray, groups: list[str] | None = None, score: str = "dice") -> TestCases:
    ids = tuple(f"case-{index:04}" for index in range(len(values)))
    return TestCases(ids, {score: np.array(values, dtype=float)}, groups=None if groups is None else np.array(groups))


def one_test(
    first: list[float] | np.ndarray,
    second: list[float] | np.ndarray,
    binary: bool = False,
    larger: bool = True,
    groups: list[str] | None = None,
) -> PairedTest:
    (test,) = paired_tests([cases(first, groups), cases(second, groups)], ["dice"], [larger], binary)
    return test


def exact_wilcoxon(differences: list[float]) -> float:
    """Two-sided p by counting every way in which signs may be dealt to the ranks; for differences without ties."""
    order = sorted(range(len(differences)), key=lambda index: abs(differences[index]))
    rank = {index: place + 1 for place, index in enumerate(order)}
    seen = sum(rank[index] for index, value in enumerate(differences) if value > 0)
    sums = [sum(place + 1 for place, sign in enumerate(signs) if sign) for signs in product((0, 1), repeat=len(order))]
    tail = min(sum(one <= seen for one in sums), sum(one >= seen for one in sums))
    return min(1.0, 2 * tail / len(sums))


def test_wilcoxon_by_hand() -> None:
    # All eight of one sign: 2 of 2^8 ways are as extreme.
    test = one_test([0.5 + 0.01 * k for k in range(1, 9)], [0.5] * 8)
    assert test.p == pytest.approx(2 / 256)
    assert (test.effect, test.wins, test.losses, test.n) == (1.0, 8, 0, 8)
    assert test.difference == pytest.approx(0.045)
    # Ranks 1 to 5, the smallest against: W- = 1, of the 32 ways two (sums 0 and 1) on each side.
    test = one_test([-0.1, 0.2, 0.3, 0.4, 0.5], [0.0] * 5)
    assert test.p == pytest.approx(4 / 32)
    assert test.effect == pytest.approx((14 - 1) / 15)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(1, 10)), st.lists(st.booleans(), min_size=9, max_size=9))
def test_wilcoxon_is_the_exact_test_where_nothing_is_tied(sizes: list[int], signs: list[bool]) -> None:
    differences = [size / 100 * (1 if sign else -1) for size, sign in zip(sizes, signs, strict=True)]
    assert one_test(differences, [0.0] * 9).p == pytest.approx(exact_wilcoxon(differences))


def test_cases_without_a_difference_are_left_out_of_wilcoxon() -> None:
    alone = one_test([0.1, 0.2, 0.3, 0.4], [0.0] * 4)
    test = one_test([0.1, 0.2, 0.3, 0.4, 0.7, 0.7], [0.0] * 4 + [0.7] * 2)
    assert (test.effect, test.wins, test.losses, test.n) == (1.0, 4, 0, 6)
    assert alone.p == pytest.approx(2 / 16)
    assert test.p <= 0.13  # of the same four; by the normal distribution where there are zeros


def test_mcnemar_by_hand() -> None:
    # The first alone is right on 8 images, the second alone on 2: 2 · (1 + 10 + 45) / 2^10.
    first = [1.0] * 8 + [0.0] * 2 + [1.0] * 20 + [0.0] * 5
    second = [0.0] * 8 + [1.0] * 2 + [1.0] * 20 + [0.0] * 5
    test = one_test(first, second, binary=True)
    assert test.p == pytest.approx(112 / 1024)
    assert (test.wins, test.losses, test.n) == (8, 2, 35)
    assert test.effect == pytest.approx(0.6)
    assert test.difference == pytest.approx(6 / 35)


def test_groups_of_copies_count_once() -> None:
    groups = [f"g{index // 4}" for index in range(40)]
    first = [1.0] * 40
    second = [float(index // 4 >= 6) for index in range(40)]
    test = one_test(first, second, binary=True, groups=groups)
    assert (test.wins, test.losses, test.n) == (6, 0, 10)
    assert test.p == pytest.approx(2 / 64)
    alone = one_test(first[::4], second[::4], binary=True)
    assert (alone.p, alone.effect, alone.difference) == (test.p, test.effect, test.difference)
    assert one_test(first, second, binary=True).p < test.p


def test_differences_of_unequal_size_count_by_their_size() -> None:
    # Of the 16 ways to deal signs to 1, 0.5, 0.5 and 0.5, 8 give a sum as far from 0 as 1.5; three wins of four do not.
    test = one_test([1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.5], binary=True)
    assert test.p == pytest.approx(8 / 16)
    assert test.effect == pytest.approx(1.5 / 2.5)
    assert (test.wins, test.losses) == (3, 1)
    # Of more: the sum over the root of the sum of squares is normal, here 5 / √(20 · 0.25 + 20 · 0.0625) = 2.
    test = one_test([1.0] * 20 + [0.0] * 20, [0.5] * 20 + [0.25] * 20, binary=True)
    assert test.p == pytest.approx(math.erfc(2 / math.sqrt(2)))


def test_equal_entries_differ_in_nothing() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    for binary in (False, True):
        test = one_test(values, values.copy(), binary)
        assert (test.difference, test.low, test.high) == (0, 0, 0)
        assert (test.p, test.p_holm, test.effect, test.wins, test.losses) == (1, 1, 0, 0, 0)
        assert not test.significant


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 60), binary=st.booleans(), larger=st.booleans())
def test_swapping_two_entries_turns_the_signs(seed: int, n: int, binary: bool, larger: bool) -> None:
    first, second = np.random.default_rng(seed).uniform(size=(2, n)).round(1)
    there, back = one_test(first, second, binary, larger), one_test(second, first, binary, larger)
    assert back.p == pytest.approx(there.p)
    assert back.difference == pytest.approx(-there.difference)
    assert back.effect == pytest.approx(-there.effect)
    assert (back.wins, back.losses) == (there.losses, there.wins)
    assert [back.low, back.high] == pytest.approx([-there.high, -there.low])  # type: ignore[operator]
    assert there.low <= there.difference <= there.high  # type: ignore[operator]
    assert -1 <= there.effect <= 1
    assert 0 < there.p <= there.p_holm <= 1


def test_less_is_better_for_distances() -> None:
    near, far = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]
    test = one_test(near, far, larger=False)
    assert (test.wins, test.losses, test.effect) == (4, 0, 1.0)
    assert test.difference == pytest.approx(-22.5)


def test_cases_without_a_score_of_both_are_left_out() -> None:
    whole = one_test([0.9, 0.8, 0.7, 0.6], [0.1, 0.3, 0.2, 0.4])
    test = one_test([0.9, math.nan, 0.8, 0.7, 0.6, 0.5], [0.1, 0.5, 0.3, 0.2, 0.4, math.nan])
    assert (test.p, test.effect, test.n) == (whole.p, whole.effect, 4)
    assert test.difference == pytest.approx(whole.difference)
    assert paired_tests([cases([math.nan, 1.0]), cases([1.0, math.nan])], ["dice"], [True], False) == []


def test_order_of_cases_changes_nothing() -> None:
    first, second = np.random.default_rng(3).uniform(size=(2, 30))
    groups = np.array([f"g{index // 2}" for index in range(30)])
    ids = tuple(f"case-{index:02}" for index in range(30))
    expected = paired_tests(
        [TestCases(ids, {"dice": one}, groups=groups) for one in (first, second)], ["dice"], [True], False
    )
    for seed in (1, 2):
        shuffled = []
        for number, values in enumerate((first, second)):
            order = np.random.default_rng([seed, number]).permutation(30)
            shuffled.append(TestCases(tuple(ids[i] for i in order), {"dice": values[order]}, groups=groups[order]))
        assert paired_tests(shuffled, ["dice"], [True], False) == expected


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.4]) == pytest.approx([1, 1, 1])
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


@given(PROBABILITIES)
def test_holm_is_monotone_and_never_below_p(p: list[float]) -> None:
    corrected = holm(p)
    assert len(corrected) == len(p)
    for before, after in zip(p, corrected, strict=True):
        assert before <= after <= 1
        assert after <= min(1, before * len(p)) or after <= max(corrected)
    order = sorted(range(len(p)), key=p.__getitem__)
    assert [corrected[index] for index in order] == sorted(corrected)
    assert min(corrected) == pytest.approx(min(1, min(p) * len(p)))


@given(PROBABILITIES, st.randoms())
def test_holm_keeps_the_order_of_the_tests(p: list[float], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(p)))
    random.shuffle(order)
    assert holm([p[index] for index in order]) == [holm(p)[index] for index in order]


def test_all_pairs_by_all_scores_are_one_family() -> None:
    generator = np.random.default_rng(5)
    entries = []
    for shift in (0.0, 0.05, 0.3):
        values = {score: generator.normal(shift, 0.1, 40) for score in ("dice", "hd95")}
        entries.append(TestCases(tuple(f"case-{index:02}" for index in range(40)), values))
    tests = paired_tests(entries, ["dice", "hd95"], [True, False], False)
    assert [(test.score, test.first, test.second) for test in tests] == [
        (score, first, second) for score in ("dice", "hd95") for first, second in ((0, 1), (0, 2), (1, 2))
    ]
    assert [test.p_holm for test in tests] == holm([test.p for test in tests])
    assert tests[1].effect < 0 < tests[4].effect


@pytest.mark.parametrize("binary", [False, True])
def test_differences_by_chance_are_rarely_significant(binary: bool) -> None:
    """Of studies in which nothing differs, at most some 5 % find something: by one test, and by a family with Holm."""
    generator = np.random.default_rng(7)
    single, family = [], []
    for _ in range(300):
        hard = generator.normal(0, 1, (40, 1))
        values = hard + generator.normal(0, 0.5, (40, 3))
        values = (values > 0).astype(float) if binary else values
        tests = paired_tests([cases(column) for column in values.T], ["dice"], [True], binary)
        single.append(tests[0].p <= 0.05)
        family.append(any(test.significant for test in tests))
    # Three standard errors of 5 % of 300 are 3.8 %.
    assert np.mean(single) <= 0.088
    assert np.mean(family) <= 0.088
