"""The Zarr store, schema 1: `Store`, which reads it. Only this module and `zarr_nodes` import TensorStore.

TensorStore runs threads of its own: never fork a process that has opened a store.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import tensorstore as ts
from numpy.typing import ArrayLike, NDArray

from hpc_tumor.data.case import LABELS
from hpc_tumor.data.zarr_nodes import context, read_attributes
from hpc_tumor.errors import DataError

SCHEMA = 1
# Holds the shard indexes of 2,000 cases (5 MB) beside the slices in flight.
_CACHE_BYTES = 100_000_000
T = TypeVar("T", covariant=True)


def read_about(path: Path) -> dict[str, Any] | None:
    """What a store says of itself (schema, dataset, task, complete …); None where `path` is no store of ours."""
    about = (read_attributes(path) or {}).get("hpc_tumor")
    return about if isinstance(about, dict) and type(about.get("schema")) is int else None


class Pending(Generic[T]):
    """A read that was started. `result()` waits for it; DataError where the store is damaged."""

    def __init__(self, finish: Callable[[], T], blame: Callable[[], DataError]):
        self._finish = finish
        self._blame = blame

    def result(self) -> T:
        try:
            return self._finish()
        except (ValueError, OSError) as error:
            raise self._blame() from error


class Store:
    """A finished store, read-only. Cases and images are numbered as in `case_ids` and `paths`.

    Attributes:
        task: segmentation or classification.
        dataset: brats or brain-mri.
        fingerprint: equal for equal content, whatever the order of conversion.
        options: those of the conversion.
        case_ids: of BraTS cases, or the images' paths.
    """

    def __init__(self, path: Path, about: dict[str, Any], threads: int | None = None):
        self.path = path
        self.about = about
        self.task: str = about["task"]
        self.dataset: str = about["dataset"]
        self.fingerprint: str = about["fingerprint"]
        self.options: dict[str, Any] = about["options"]
        index = read_attributes(path / "index")
        if index is None:
            raise DataError(f"{path} is damaged: its index is missing. Run prepare-data again with --overwrite.")
        self._index = index
        self.case_ids: list[str] = index["case_ids"]
        self._context = context(threads, _CACHE_BYTES)
        self._handles: dict[str, Any] = {}
        self._process = os.getpid()

    @classmethod
    def open(cls, path: Path, *, threads: int | None = None) -> Store:
        """Open the store at `path`; at most `threads` decode, all there are by default.

        Raises DataError where it does not exist, is no store, is unfinished, damaged, or of another schema.
        """
        path = Path(path)
        if not path.exists():
            raise DataError(f"there is no store {path}. Make one: hpc-tumor prepare-data SOURCE {path}")
        about = read_about(path)
        if about is None:
            raise DataError(f"{path} is not a store of hpc-tumor. Make one: hpc-tumor prepare-data SOURCE STORE")
        if about["schema"] != SCHEMA:
            way = "Update hpc-tumor, or" if about["schema"] > SCHEMA else "Please"
            raise DataError(
                f"{path} has schema {about['schema']}; this version reads {SCHEMA}."
                f" {way} convert again: hpc-tumor prepare-data SOURCE {path} --overwrite"
            )
        if about.get("complete") is not True:
            raise DataError(f"{path} is unfinished: run the same hpc-tumor prepare-data again, and it goes on.")
        try:
            return cls(path, about, threads)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r}). Run prepare-data again with --overwrite.") from error

    def __len__(self) -> int:
        return len(self.case_ids)

    # BraTS: axial slices of cases

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the label values 0 to 3."""
        return LABELS

    @cached_property
    def shapes(self) -> NDArray[np.int64]:
        """`(n, 3)`: Z, Y, X of each case."""
        return self._column("shape").astype(np.int64)

    @cached_property
    def statistics(self) -> NDArray[np.float64]:
        """`(n, 4, 2)`: mean and standard deviation over the brain, per modality; 0 deviation where there is none."""
        return self._column("statistics")

    @cached_property
    def background(self) -> NDArray[np.float64]:
        """`(n, 4)`: the value outside the brain, per modality."""
        return self._column("background")

    @cached_property
    def label_counts(self) -> NDArray[np.int32]:
        """`(n, largest Z, 4)`: voxels of each label in each slice; 0 beyond a case's last slice."""
        return self._column("label_counts")

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the slices as read: that of the sources, or the smallest that holds all of them."""
        return np.result_type(*(np.dtype(name) for name in set(self._index["dtypes"])))

    @property
    def slice_shape(self) -> tuple[int, int]:
        """(Y, X) of the slices. Raises DataError where cases differ in it."""
        sizes = np.unique(self.shapes[:, 1:], axis=0)
        if len(sizes) > 1:
            text = ", ".join(f"{y} × {x}" for y, x in sizes.tolist()[:4])
            raise DataError(f"{self.path}: the slices of its cases differ in size ({text}): they cannot share a batch.")
        return int(sizes[0, 0]), int(sizes[0, 1])

    @property
    def clinical(self) -> list[dict[str, Any]]:
        """What the tables beside the cases say of each: grade, age, survival …; empty where they say nothing."""
        return list(self._index["clinical"])

    def slices(self, case: int) -> int:
        """Number of axial slices of the case."""
        return int(self.shapes[case, 0])

    def spacing(self, case: int) -> tuple[float, float, float]:
        """Voxel size along z, y, x in mm."""
        z, y, x = self._spacing[case].tolist()
        return z, y, x

    def case_metadata(self, case: int) -> dict[str, Any]:
        """All that the store keeps of one case: source files, affine, meta … (read from the case itself)."""
        attributes = read_attributes(self.path / "cases" / self.case_ids[case])
        if attributes is None or "hpc_tumor" not in attributes:
            raise self._damaged(f"the metadata of case {self.case_ids[case]}")
        return cast(dict[str, Any], attributes["hpc_tumor"])

    def affine(self, case: int) -> NDArray[np.float64]:
        """`(4, 4)` from voxel (x, y, z) of the stored volume to mm."""
        return np.array(self.case_metadata(case)["affine"], dtype=np.float64)

    def header(self, case: int) -> bytes:
        """The NIfTI header as in the source."""
        return base64.b64decode(self.case_metadata(case)["header"])

    def read_slices(self, refs: ArrayLike) -> Pending[tuple[NDArray[Any], NDArray[np.uint8]]]:
        """Start reading axial slices given as `(n, 2)` pairs of case and z.

        Gives images `(n, 4, Y, X)` in `dtype` and labels `(n, Y, X)` uint8. All reads of a batch are one request:
        of the ways measured (a future per slice, grouping by case, filling a given array) the fastest.
        """
        pairs = np.asarray(refs, dtype=np.int64).reshape(-1, 2)
        if not len(pairs):
            raise ValueError("read_slices needs at least one slice")
        _ = self.slice_shape
        places = pairs.tolist()
        with ts.Batch() as batch:
            image = ts.stack([self._image(case)[:, z] for case, z in places]).read(batch=batch)
            label = ts.stack([self._label(case)[z] for case, z in places]).read(batch=batch)
        return Pending(lambda: (image.result(), label.result()), lambda: self._blame(places))

    def read_volume(self, case: int) -> Pending[tuple[NDArray[Any], NDArray[np.uint8]]]:
        """Start reading a whole case: image `(4, Z, Y, X)` in `dtype` and labels `(Z, Y, X)` uint8."""
        image, label = self._image(case).read(), self._label(case).read()
        return Pending(lambda: (image.result(), label.result()), lambda: self._damaged(f"case {self.case_ids[case]}"))

    # Brain MRI: images

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by number."""
        return list(self._index["classes"])

    @property
    def paths(self) -> list[str]:
        """Each image's path below its source."""
        return self.case_ids

    @cached_property
    def label(self) -> NDArray[np.int64]:
        """`(n,)`: class of each image."""
        return self._column("label").astype(np.int64)

    @cached_property
    def part(self) -> NDArray[np.str_]:
        """`(n,)`: "train" or "test", as published."""
        return np.where(self._column("part") == 1, "test", "train")

    @cached_property
    def identical(self) -> NDArray[np.int64]:
        """`(n,)`: images with one number have the same decoded pixels."""
        return self._column("identical").astype(np.int64)

    @cached_property
    def group(self) -> NDArray[np.int64]:
        """`(n,)`: images with one number are duplicates of each other, identical or nearly so."""
        return self._column("group").astype(np.int64)

    def image_column(self, name: str) -> list[Any]:
        """A column of image metadata kept as text: modes or sha256."""
        return list(self._index[name])

    def read_images(self, indices: ArrayLike) -> Pending[NDArray[np.uint8]]:
        """Start reading images: `(n, H, W)` uint8."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        read = self._handle("images")[chosen].read()
        return Pending(read.result, lambda: self._damaged("one of the images"))

    # Files behind it

    @cached_property
    def _spacing(self) -> NDArray[np.float64]:
        return self._column("spacing")

    def _image(self, case: int) -> Any:
        handle = self._handle(f"cases/{self.case_ids[case]}/0")
        return handle if handle.dtype.numpy_dtype == self.dtype else ts.cast(handle, self.dtype)

    def _label(self, case: int) -> Any:
        return self._handle(f"cases/{self.case_ids[case]}/labels/seg/0")

    def _column(self, name: str) -> NDArray[Any]:
        try:
            return cast(NDArray[Any], self._handle(f"index/{name}").read().result())
        except (ValueError, OSError) as error:
            raise self._damaged(f"the column {name} of its index") from error

    def _handle(self, place: str) -> Any:
        """The open array at `place`, opened once per process."""
        if os.getpid() != self._process:
            raise RuntimeError("a store was used after a fork: open it in the process that reads it")
        if place not in self._handles:
            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{(self.path / place).absolute()}/"},
                "recheck_cached_data": False,
                "recheck_cached_metadata": False,
                "fill_missing_data_reads": False,
            }
            try:
                self._handles[place] = ts.open(spec, open=True, read=True, context=self._context).result()
            except (ValueError, OSError) as error:
                raise self._damaged(place) from error
        return self._handles[place]

    def _blame(self, places: Sequence[Sequence[int]]) -> DataError:
        """Which slice of a failed batch cannot be read."""
        for case, z in places:
            try:
                self._image(case)[:, z].read().result()
                self._label(case)[z].read().result()
            except (ValueError, OSError):
                return self._damaged(f"slice {z} of case {self.case_ids[case]}")
        return self._damaged("a slice that could be read the second time")

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"{self.path}: {what} is missing or damaged. Remove the case's folder if one is named, and run"
            " prepare-data again; else convert anew with --overwrite."
        )
