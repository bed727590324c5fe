"""Arrays of a store with one chunk per image: the images, and the tumour masks of those that have one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpc_tumor.data.store.nodes import ArrayLayout
from hpc_tumor.data.store.shards import DamagedError, Pending, ReadingThreads, ShardFiles

IMAGES, MASKS = "images", "labels/tumour"  # folders of the array of images, and of the masks' group


class ImageStack:
    """An array `(n, H, W)` uint8 with one chunk per image.

    Attributes:
        shape: (H, W).
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        files: ShardFiles,
        threads: ReadingThreads,
        unreadable: Callable[[int, Exception], Exception],
    ):
        """Open the array of `count` images in `folder`; `unreadable` returns the error to raise for an image.

        Raises DamagedError and OSError.
        """
        layout = ArrayLayout.read(folder, dtype=np.dtype(np.uint8), names=("image", "y", "x"))
        if layout.chunk != (1, *layout.shape[1:]) or layout.shape[0] != count:
            raise DamagedError(f"{folder} is not an array of {count} images")
        self.shape = layout.shape[1:]
        self._files, self._threads, self._unreadable = files, threads, unreadable
        self._chunks, self._in_shard = layout.chunks, layout.shard[0]
        self._shards = [str(layout.file(folder, shard)) for shard in range(layout.shards)]

    def start(self, indices: Sequence[int], into: NDArray[np.uint8]) -> Pending[NDArray[np.uint8]]:
        """Start reading images into the array `(len(indices), H, W)`."""
        return Pending(into, self._threads.start(self._read, len(indices), indices, into))

    def _read(self, indices: Sequence[int], pixels: Any) -> None:
        for index, out in zip(indices, pixels, strict=True):
            shard, position = divmod(index, self._in_shard)
            try:
                self._files.read_chunk(self._shards[shard], self._chunks, position, out)
            except (DamagedError, OSError) as error:
                raise self._unreadable(index, error) from error


class Masks:
    """Tumour masks and borders of a store's images. Only those of the Cheng set have them.

    Attributes:
        present: `(n,)`, True for images with a mask.
        digests: SHA-256 of each mask, "" for images without one.
    """

    def __init__(
        self, digests: Sequence[str], shape: tuple[int, ...], stack: ImageStack | None, borders: NDArray[np.float64]
    ):
        self.digests = digests
        self.present = np.array([digest != "" for digest in digests])
        self._shape, self._stack, self._borders = shape, stack, borders

    def read(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Read masks `(n, H, W)`, cropped and resized as the images: 1 in the tumour, 0 where there is no mask."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        masks = np.zeros((len(chosen), *self._shape), np.uint8)
        rows = np.flatnonzero(self.present[chosen])
        if self._stack is not None and len(rows):
            masks[rows] = self._stack.start(chosen[rows].tolist(), masks[rows]).result()
        return masks

    def border(self, image: int) -> NDArray[np.float64]:
        """Return the tumour's border `(points, 2)` as published, in pixels of the source; empty without one."""
        border = self._borders[image]
        return border[~np.isnan(border[:, 0])]
