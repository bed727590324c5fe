"""Predicted slices put back into volumes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from made_volumes import part_of

from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.scoring.cases import Case
from hpc_tumor.training.scoring.surfaces import box
from hpc_tumor.training.scoring.volumes import Volumes, whole_cases


def noise(depths: list[int], shape: tuple[int, int] = (6, 7)) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 32, (depth, *shape), dtype=np.uint8) for depth in depths]


def volumes_of(part: Any) -> tuple[Volumes, dict[int, Case]]:
    """Return volumes of a part, and the cases that they pass on, by row."""
    taken: dict[int, Case] = {}

    def take(case: Case) -> None:
        assert case.row not in taken
        taken[case.row] = case

    return Volumes(part, take), taken


def test_slices_in_any_order_become_the_volumes_they_were() -> None:
    codes = noise([4, 1, 6])
    volumes, taken = volumes_of(part_of([4, 1, 6], (6, 7), (3.0, 1.0, 2.0)))
    flat = np.concatenate(codes)
    for positions in np.array_split(np.random.default_rng(1).permutation(len(flat)), 4):
        volumes.add(positions, torch.from_numpy(flat[positions]))
    volumes.share(Distributed())
    assert sorted(taken) == [0, 1, 2]
    for row, case in taken.items():
        np.testing.assert_array_equal(case.codes(), codes[row])
        assert (case.spacing, case.voxel_mm3) == ((3.0, 1.0, 2.0), 6)


def test_a_case_is_passed_on_while_others_are_predicted() -> None:
    """So that it is measured meanwhile; the batches of one thread are compressed in order."""
    codes = noise([4, 6])
    volumes, taken = volumes_of(part_of([4, 6], (6, 7)))
    flat = np.concatenate(codes)
    for start in range(0, len(flat), 2):
        volumes.add(np.arange(start, start + 2), torch.from_numpy(flat[start : start + 2]))
        time.sleep(0.05)
    assert 0 in taken
    volumes.share(Distributed())
    assert sorted(taken) == [0, 1]


def test_slices_of_a_part_in_another_order_are_sorted_by_where_they_lie() -> None:
    part = part_of([5], (6, 7))
    part.slices = part.slices[::-1]
    (codes,), (volumes, taken) = noise([5]), volumes_of(part)
    volumes.add(np.arange(5), torch.from_numpy(codes[::-1].copy()))
    volumes.share(Distributed())
    np.testing.assert_array_equal(taken[0].codes(), codes)


def test_voxels_of_shrunken_slices_are_wider() -> None:
    volumes, taken = volumes_of(part_of([2], (240, 120), (5.0, 1.0, 0.5)))
    volumes.add(np.arange(2), torch.zeros(2, 60, 60, dtype=torch.uint8))
    volumes.share(Distributed())
    assert taken[0].spacing == (5.0, 4.0, 1.0)
    assert (np.array(taken[0].codes().shape) * taken[0].spacing).tolist() == [10, 240, 60]  # as many mm as before


def test_what_is_not_whole_is_left_out() -> None:
    part, flat = part_of([3, 3, 3], (6, 7)), np.concatenate(noise([3, 3, 3]))
    volumes, taken = volumes_of(part)
    volumes.add(np.array([0, 1, 6, 7]), torch.from_numpy(flat[[0, 1, 6, 7]]))
    volumes.share(Distributed())
    assert not taken
    volumes, taken = volumes_of(part)
    volumes.add(np.array([0, 1, 6, 7, 8]), torch.from_numpy(flat[[0, 1, 6, 7, 8]]))
    volumes.share(Distributed())
    assert list(taken) == [2]
    assert whole_cases(part).all()


class OneOf:
    """One of several ranks, each of which is a thread."""

    def __init__(self, rank: int, values: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self._values, self._barrier = rank, len(values), values, barrier

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(10)
        return list(self._values)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("cases", [1, 8, 25])
def test_each_case_is_one_ranks(ranks: int, cases: int) -> None:
    """Most are with the rank that predicted them; those at the borders of two ranks are shared by all."""
    codes = noise([5] * cases)
    part, flat = part_of([5] * cases, (6, 7)), np.concatenate(codes)
    values, barrier = [None] * ranks, threading.Barrier(ranks)

    def predict(rank: int) -> dict[int, Case]:
        volumes, taken = volumes_of(part)
        for step in np.array_split(np.arange(0, len(flat), 2), ranks)[rank]:
            positions = np.arange(len(flat))[step : step + 2]
            volumes.add(positions, torch.from_numpy(flat[positions]))
        volumes.share(OneOf(rank, values, barrier))  # type: ignore[arg-type]
        return taken

    with ThreadPoolExecutor(ranks) as pool:
        taken = list(pool.map(predict, range(ranks)))
    assert sorted(row for of_rank in taken for row in of_rank) == list(range(cases))
    for of_rank in taken:
        for row, case in of_rank.items():
            np.testing.assert_array_equal(case.codes(), codes[row])
    assert min(map(len, taken)) >= cases // ranks - 2


def test_the_box_around_something() -> None:
    there = np.zeros((4, 5, 6), dtype=bool)
    assert there[box(there)].tolist() == [[[False]]]  # one element: no reader meets an array without any
    there[1, 2:4, 5] = True
    assert box(there) == (slice(1, 2), slice(2, 4), slice(5, 6))
