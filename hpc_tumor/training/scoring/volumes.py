"""Assemble predicted slices into volumes: each case on one rank, whichever ranks predicted its slices."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.host_copy import HostCopy, copy_to_host

_AT_ONCE = 2  # batches per thread that wait to be compressed
_CHECK_EVERY = 8  # cases per rank between checks for a stop, in which ranks wait for each other


@dataclass(frozen=True)
class Watch:
    """Callbacks while cases are scored.

    Attributes:
        alive: called after each case, so that scoring does not look like a hang.
        check_stop: called regularly by all ranks together; may raise on all of them to end scoring.
    """

    alive: Callable[[], None] = lambda: None
    check_stop: Callable[[], None] = lambda: None


class Volumes:
    """Predictions for the slices of a part: true label × 8 + predicted bits of each voxel, compressed.

    Most voxels are background, so a case of 240 × 240 × 155 voxels takes about 50 kB. Threads wait for the copies from
    a GPU and compress them, while the next batches are predicted.
    """

    def __init__(self, part: SlicePart):
        self._part = part
        self._packed: dict[int, bytes] = {}
        self._shape: tuple[int, int] = (0, 0)
        self._packing: deque[Future[dict[int, bytes]]] = deque()
        self._threads: ThreadPoolExecutor | None = None

    def add(self, positions: np.ndarray, codes: Tensor) -> None:
        """Keep the `(N, H, W)` codes of the samples at `positions`, which must not change any more."""
        self._shape = (codes.shape[1], codes.shape[2])
        if self._threads is None:
            # CUDA would give a thread without a device the first GPU, and take memory there, whatever rank this is.
            self._threads = ThreadPoolExecutor(
                torch.get_num_threads(), thread_name_prefix="volumes", initializer=devices.use, initargs=(codes.device,)
            )
        self._packing.append(self._threads.submit(_pack, positions.tolist(), copy_to_host(codes)))
        self._collect(_AT_ONCE * torch.get_num_threads())

    def share(self, distributed: Distributed) -> None:
        """Share all slices with every rank. All ranks call this together."""
        self._end_packing()
        everywhere = distributed.gather((self._packed, self._shape))
        self._packed = {position: packed for rank, _ in everywhere for position, packed in rank.items()}
        self._shape = max(shape for _, shape in everywhere)

    def cases(
        self, distributed: Distributed, watch: Watch = Watch()
    ) -> Iterator[tuple[int, np.ndarray, tuple[float, float, float]]]:
        """Yield row, `(Z, Y, X)` codes and spacing in mm (z, y, x) of this rank's share of the whole cases.

        Cases with missing slices, due to a limit or a split of single slices, are left out.
        """
        self._end_packing()
        positions = np.array(sorted(self._packed), dtype=np.int64)
        rows, whole = self._part.case_of[positions], whole_cases(self._part, positions)
        for turn, first in enumerate(range(0, len(whole), distributed.world_size)):
            if turn % _CHECK_EVERY == _CHECK_EVERY - 1:
                watch.check_stop()
            row = first + distributed.rank
            if row < len(whole) and whole[row]:
                yield row, self._volume(positions[rows == row]), self.spacing(int(self._part.cases[row]))
                watch.alive()

    def spacing(self, case: int) -> tuple[float, float, float]:
        """Return the mm between predicted voxels along z, y, x: wider than the source's if slices were shrunk."""
        z, y, x = self._part.store.spacing(case)
        height, width = self._part.store.slice_shape
        return z, y * height / self._shape[0], x * width / self._shape[1]

    @property
    def any_whole(self) -> bool:
        """Return True if any case has all of its slices."""
        self._end_packing()
        return bool(whole_cases(self._part, np.array(sorted(self._packed), dtype=np.int64)).any())

    def _collect(self, most: int) -> None:
        """Wait until at most so many batches are still being compressed, which bounds their memory."""
        while len(self._packing) > most:
            self._packed.update(self._packing.popleft().result())

    def _end_packing(self) -> None:
        self._collect(0)
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def _volume(self, positions: np.ndarray) -> np.ndarray:
        in_order = positions[np.argsort(self._part.slices[positions, 1])].tolist()
        flat = np.frombuffer(b"".join(zlib.decompress(self._packed[position]) for position in in_order), np.uint8)
        return flat.reshape(len(in_order), *self._shape)


def _pack(positions: list[int], codes: HostCopy) -> dict[int, bytes]:
    pixels = zip(positions, codes.wait().numpy(), strict=True)
    return {position: zlib.compress(of_slice.tobytes(), 1) for position, of_slice in pixels}


def whole_cases(part: SlicePart, positions: np.ndarray | None = None) -> np.ndarray:
    """Return `(cases,)` bool: whether the part, or its samples at `positions`, has all slices of each case."""
    rows = part.case_of if positions is None else part.case_of[positions]
    whole: np.ndarray = np.bincount(rows, minlength=len(part.cases)) == part.store.shapes[part.cases, 0]
    return whole


def box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around all true elements; a box of one element if there are none."""
    ranges = []
    for axis in range(mask.ndim):
        indices = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        ranges.append(slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 1))
    return tuple(ranges)
