"""Assemble predicted slices into whole cases: each on one rank, whichever ranks predicted its slices."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.host_copy import HostCopy, copy_to_host
from hpc_tumor.training.scoring.cases import Case

_AT_ONCE = 2  # batches per thread that wait to be compressed


@dataclass(frozen=True)
class Watch:
    """Callbacks while cases are scored.

    Attributes:
        alive: called regularly, so that scoring does not look like a hang.
        check_stop: called regularly by all ranks together; may raise on all of them to end scoring.
    """

    alive: Callable[[], None] = lambda: None
    check_stop: Callable[[], None] = lambda: None


class Volumes:
    """Puts predicted slices together to whole cases, and passes each on once all of its slices are there.

    Threads wait for the copies from a GPU and compress them, while the next batches are predicted. Cases of which the
    part, or a limit, has not all slices are left out.
    """

    def __init__(self, part: SlicePart, take: Callable[[Case], None]):
        """`take` gets each whole case, on one rank; it must not wait."""
        self._part, self._take = part, take
        self._whole = whole_cases(part)
        self._missing = np.where(self._whole, part.store.shapes[part.cases, 0], -1)  # slices of each case
        self._packed: dict[int, bytes] = {}  # by position, of cases that are not whole yet
        self._shape: tuple[int, int] = (0, 0)
        self._packing: deque[Future[dict[int, bytes]]] = deque()
        self._threads: ThreadPoolExecutor | None = None

    def add(self, positions: np.ndarray, codes: Tensor) -> None:
        """Add the `(N, H, W)` codes of the samples at `positions`, which must not change any more."""
        self._shape = (codes.shape[1], codes.shape[2])
        if self._threads is None:
            # CUDA would give a thread without a device the first GPU, and take memory there, whatever rank this is.
            self._threads = ThreadPoolExecutor(
                torch.get_num_threads(), thread_name_prefix="volumes", initializer=devices.use, initargs=(codes.device,)
            )
        self._packing.append(self._threads.submit(_pack, positions.tolist(), copy_to_host(codes)))
        self._collect(_AT_ONCE * torch.get_num_threads())

    def share(self, distributed: Distributed) -> None:
        """Put cases together whose slices several ranks have predicted. All ranks call this together, at the end."""
        self._collect(0)
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        parts = {position: packed for position, packed in self._packed.items() if self._whole[self._row(position)]}
        everywhere = distributed.gather((parts, self._shape))
        self._packed = {position: packed for rank, _ in everywhere for position, packed in rank.items()}
        self._shape = max(shape for _, shape in everywhere)
        rows, counts = np.unique([self._row(position) for position in self._packed], return_counts=True)
        depths = self._part.store.shapes[self._part.cases[rows.astype(np.int64)], 0]
        for number, row in enumerate(rows[counts == depths].tolist()):
            if number % distributed.world_size == distributed.rank:
                self._pass_on(row)

    def spacing(self, case: int) -> tuple[float, float, float]:
        """Return the mm between predicted voxels along z, y, x: wider than the source's if slices were shrunk."""
        z, y, x = self._part.store.spacing(case)
        height, width = self._part.store.slice_shape
        return z, y * height / self._shape[0], x * width / self._shape[1]

    def _collect(self, most: int) -> None:
        """Wait until at most so many batches are still being compressed, which bounds their memory."""
        while len(self._packing) > most or (self._packing and self._packing[0].done()):
            packed = self._packing.popleft().result()
            self._packed.update(packed)
            for position in packed:
                row = self._row(position)
                self._missing[row] -= 1
                if self._missing[row] == 0:
                    self._pass_on(row)

    def _pass_on(self, row: int) -> None:
        positions = np.flatnonzero(self._part.case_of == row)
        in_order = positions[np.argsort(self._part.slices[positions, 1])].tolist()
        slices = tuple(self._packed.pop(position) for position in in_order)
        self._take(Case(row, slices, self._shape, self.spacing(int(self._part.cases[row]))))

    def _row(self, position: int) -> int:
        return int(self._part.case_of[position])


def _pack(positions: list[int], codes: HostCopy) -> dict[int, bytes]:
    pixels = zip(positions, codes.wait().numpy(), strict=True)
    return {position: zlib.compress(of_slice.tobytes(), 1) for position, of_slice in pixels}


def whole_cases(part: SlicePart, positions: np.ndarray | None = None) -> np.ndarray:
    """Return `(cases,)` bool: whether the part, or its samples at `positions`, has all slices of each case."""
    rows = part.case_of if positions is None else part.case_of[positions]
    whole: np.ndarray = np.bincount(rows, minlength=len(part.cases)) == part.store.shapes[part.cases, 0]
    return whole
