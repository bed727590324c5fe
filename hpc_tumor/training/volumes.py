"""Predicted slices, put back into the volumes of their cases: each case on one rank, whoever predicted its slices."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from hpc_tumor.data.samples import SlicePart
from hpc_tumor.training.distributed import Distributed


class Volumes:
    """What was predicted for the slices of a part: true label × 8 + predicted bits of each voxel, packed.

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

    def cases(self, rank: int = 0, ranks: int = 1) -> Iterator[tuple[int, np.ndarray, tuple[float, float, float]]]:
        """Row, `(Z, Y, X)` codes and spacing in mm (z, y, x) of those cases that are whole: this rank's share of them.

        A case of which slices were left out, as by a limit or a split of single slices, has no volume.
        """
        positions: list[list[int]] = [[] for _ in self._part.cases]
        for position in sorted(self._packed):
            positions[int(self._part.case_of[position])].append(position)
        for row in range(rank, len(positions), ranks):
            case = int(self._part.cases[row])
            if len(positions[row]) == self._part.store.slices(case) > 0:
                yield row, self._volume(positions[row]), self.spacing(case)

    def spacing(self, case: int) -> tuple[float, float, float]:
        """Millimetres between predicted voxels along z, y, x: wider than the source's where slices were shrunk."""
        z, y, x = self._part.store.spacing(case)
        height, width = self._part.store.slice_shape
        return z, y * height / self._shape[0], x * width / self._shape[1]

    def _volume(self, positions: list[int]) -> np.ndarray:
        in_order = sorted(positions, key=lambda position: int(self._part.slices[position, 1]))
        flat = np.frombuffer(b"".join(zlib.decompress(self._packed[position]) for position in in_order), np.uint8)
        return flat.reshape(len(in_order), *self._shape)
