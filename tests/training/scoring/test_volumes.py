"""Predicted slices put back into volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_volumes import part_of, volumes_of

from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.scoring.volumes import Volumes, Watch, box, whole_cases


def noise(depths: list[int], shape: tuple[int, int] = (6, 7)) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 32, (depth, *shape), dtype=np.uint8) for depth in depths]


def test_slices_in_any_order_become_the_volumes_they_were() -> None:
    codes = noise([4, 1, 6])
    part = part_of([4, 1, 6], (6, 7), (3.0, 1.0, 2.0))
    volumes, flat = Volumes(part), np.concatenate(codes)
    for positions in np.array_split(np.random.default_rng(1).permutation(len(flat)), 4):
        volumes.add(positions, torch.from_numpy(flat[positions]))
    found = {row: (volume, spacing) for row, volume, spacing in volumes.cases(Distributed())}
    assert sorted(found) == [0, 1, 2]
    for row, (volume, spacing) in found.items():
        np.testing.assert_array_equal(volume, codes[row])
        assert spacing == (3.0, 1.0, 2.0)


def test_slices_of_a_part_in_another_order_are_sorted_by_where_they_lie() -> None:
    part = part_of([5], (6, 7))
    part.slices = part.slices[::-1]
    (codes,), volumes = noise([5]), Volumes(part)
    volumes.add(np.arange(5), torch.from_numpy(codes[::-1].copy()))
    ((_, volume, _),) = volumes.cases(Distributed())
    np.testing.assert_array_equal(volume, codes)


def test_voxels_of_shrunken_slices_are_wider() -> None:
    part = part_of([2], (240, 120), (5.0, 1.0, 0.5))
    volumes = Volumes(part)
    volumes.add(np.arange(2), torch.zeros(2, 60, 60, dtype=torch.uint8))
    assert volumes.spacing(0) == (5.0, 4.0, 1.0)
    ((_, volume, spacing),) = volumes.cases(Distributed())
    assert (np.array(volume.shape) * spacing).tolist() == [10, 240, 60]  # as many mm as before


def test_what_is_not_whole_is_left_out() -> None:
    part = part_of([3, 3, 3], (6, 7))
    volumes, flat = Volumes(part), np.concatenate(noise([3, 3, 3]))
    assert not volumes.any_whole
    volumes.add(np.array([0, 1, 6, 7]), torch.from_numpy(flat[[0, 1, 6, 7]]))
    assert not volumes.any_whole
    assert list(volumes.cases(Distributed())) == []
    volumes.add(np.array([8]), torch.from_numpy(flat[[8]]))
    assert volumes.any_whole
    assert [row for row, _, _ in volumes.cases(Distributed())] == [2]
    assert whole_cases(part).all()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("cases", [1, 8, 25, 33])
def test_each_case_is_one_ranks_and_all_look_equally_often(ranks: int, cases: int) -> None:
    """Counting is a collective: a rank that calls it once more than the others would wait forever."""
    volumes = volumes_of(noise([2] * cases))
    rows, looks, alive = [], [], []
    for rank in range(ranks):
        looked: list[int] = []
        watch = Watch(lambda: alive.append(1), lambda: looked.append(1))  # noqa: B023
        rows += [row for row, _, _ in volumes.cases(Distributed(rank, world_size=ranks), watch)]
        looks.append(len(looked))
    assert sorted(rows) == list(range(cases))
    assert len(alive) == cases
    assert len(set(looks)) == 1
    assert looks[0] == -(-cases // ranks) // 8


def test_a_stop_in_between_ends_it() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        seen += [
            seen.append(row) for row, _, _ in volumes_of(noise([1] * 20)).cases(Distributed(), Watch(check_stop=stop))
        ]
    assert 0 < len(seen) < 20


def test_the_box_around_something() -> None:
    there = np.zeros((4, 5, 6), dtype=bool)
    assert there[box(there)].tolist() == [[[False]]]  # one element: no reader meets an array without any
    there[1, 2:4, 5] = True
    assert box(there) == (slice(1, 2), slice(2, 4), slice(5, 6))
