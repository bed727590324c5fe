"""Predicted slices, put back into the volumes of their cases: each case on one rank, whoever predicted its slices."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.training.distributed import Distributed

_LOOK = 8  # cases of each rank between two looks whether to stop: ranks wait for each other there


@dataclass(frozen=True)
class Watch:
    """Listeners while cases are worked through.

    Attributes:
        alive: called after each case, so that it does not look like a hang.
        look: called now and then by all ranks together; what it raises there ends the work on all of them.
    """

    alive: Callable[[], None] = lambda: None
    look: Callable[[], None] = lambda: None


class Volumes:
    """Predictions for the slices of a part: true label × 8 + predicted bits of each voxel, packed.

    Predictions are mostly background, so that a case of 240 × 240 × 155 voxels takes some 50 kB.
    """

    def __init__(self, part: SlicePart):
        self._part = part
        self._packed: dict[int, bytes] = {}
        self._shape: tuple[int, int] = (0, 0)

    def add(self, positions: np.ndarray, codes: np.ndarray) -> None:
        """Keep the `(N, H, W)` codes of the samples at `positions`."""
        self._shape = (codes.shape[1], codes.shape[2])
        for position, pixels in zip(positions.tolist(), codes, strict=True):
            self._packed[position] = zlib.compress(pixels.tobytes(), 1)

    def share(self, distributed: Distributed) -> None:
        """Let every rank have the slices of all ranks. All ranks call this together."""
        everywhere = distributed.gather((self._packed, self._shape))
        self._packed = {position: packed for rank, _ in everywhere for position, packed in rank.items()}
        self._shape = max(shape for _, shape in everywhere)

    def cases(
        self, distributed: Distributed, watch: Watch = Watch()
    ) -> Iterator[tuple[int, np.ndarray, tuple[float, float, float]]]:
        """Row, `(Z, Y, X)` codes and spacing in mm (z, y, x) of those cases that are whole: this rank's share of them.

        A case of which slices were left out, as by a limit or a split of single slices, has no volume.
        """
        positions = np.array(sorted(self._packed), dtype=np.int64)
        rows, whole = self._part.case_of[positions], whole_cases(self._part, positions)
        for turn, first in enumerate(range(0, len(whole), distributed.world_size)):
            if turn % _LOOK == _LOOK - 1:
                watch.look()
            row = first + distributed.rank
            if row < len(whole) and whole[row]:
                yield row, self._volume(positions[rows == row]), self.spacing(int(self._part.cases[row]))
                watch.alive()

    def spacing(self, case: int) -> tuple[float, float, float]:
        """Millimetres between predicted voxels along z, y, x: wider than the source's where slices were shrunk."""
        z, y, x = self._part.store.spacing(case)
        height, width = self._part.store.slice_shape
        return z, y * height / self._shape[0], x * width / self._shape[1]

    @property
    def any_whole(self) -> bool:
        """Return True if any case has all of its slices here."""
        return bool(whole_cases(self._part, np.array(sorted(self._packed), dtype=np.int64)).any())

    def _volume(self, positions: np.ndarray) -> np.ndarray:
        in_order = positions[np.argsort(self._part.slices[positions, 1])].tolist()
        flat = np.frombuffer(b"".join(zlib.decompress(self._packed[position]) for position in in_order), np.uint8)
        return flat.reshape(len(in_order), *self._shape)


def whole_cases(part: SlicePart, positions: np.ndarray | None = None) -> np.ndarray:
    """`(cases,)` bool: whether all slices of each case of the part are among the samples at `positions`, or in it."""
    rows = part.case_of if positions is None else part.case_of[positions]
    whole: np.ndarray = np.bincount(rows, minlength=len(part.cases)) == part.store.shapes[part.cases, 0]
    return whole


def box(there: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds all true elements, and one element where none is: a box is never empty."""
    ranges = []
    for axis in range(there.ndim):
        places = np.flatnonzero(there.any(axis=tuple(other for other in range(there.ndim) if other != axis)))
        ranges.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 1))
    return tuple(ranges)
