"""Reader of the Zarr store."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpc_tumor.data.editions import EDITIONS, Edition
from hpc_tumor.data.store.index_check import index_fault, is_valid_column
from hpc_tumor.data.store.nodes import ArrayLayout, RewrittenError, read_attributes, read_column, volume_layout
from hpc_tumor.data.store.shards import DamagedError, Pending, ReadingThreads, ShardFiles
from hpc_tumor.data.store.stack import IMAGES, MASKS, ImageStack, Masks
from hpc_tumor.errors import DataError, StoreError
from hpc_tumor.system.resources import available_cpus

_ANEW = "Run prepare-data again with --overwrite."
# Schema 2 of patients adds label editions, noise tolerance around the brain, and scan descriptors; schema 2 of images
# adds patients, slices, sources and thumbnails of the head.
SCHEMAS = {"segmentation": 2, "classification": 2}
_READABLE = {"segmentation": (2,), "classification": (1, 2)}
SINCE_2 = frozenset({"patient", "source", "head", "slice", "correlation", "copies"})  # columns of images
_Volume = tuple[str, str, np.dtype[Any]]  # shards of a case's image and labels, and the image's type


def read_about(path: Path) -> dict[str, Any] | None:
    """Read the attributes of a store (schema, dataset, task, complete …), or None if `path` is not a store."""
    about = (read_attributes(path) or {}).get("hpc_tumor")
    return about if isinstance(about, dict) and type(about.get("schema")) is int else None


def _column(name: str, text: str = "", dtype: type[np.int64] | None = None) -> cached_property[NDArray[Any]]:
    """Define a column of the index as a lazy attribute of a store; `text` is its docstring."""

    def read(store: Store) -> NDArray[Any]:
        values = store._column(name)
        return values if dtype is None else values.astype(dtype)

    read.__doc__ = text
    return cached_property(read)


class Store:
    """A complete store, read-only. Cases and images are numbered as in `case_ids` and `paths`.

    Attributes:
        task: segmentation or classification.
        dataset: brats, brats-h5, brain-mri or cheng.
        fingerprint: equal for equal content, in any order of conversion.
        options: options of the conversion.
        case_ids: ids of BraTS cases, or paths of images.
        threads: threads that read and unpack.
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
            raise StoreError(f"{path} is damaged: the index is missing", _ANEW)
        if fault := index_fault(about, index):
            raise StoreError(f"{path} is damaged: {fault}", _ANEW)
        self._index = index
        self.case_ids: list[str] = index["case_ids"]
        self.threads = ReadingThreads(threads or available_cpus())
        self._files = ShardFiles()
        self._volumes: dict[int, _Volume] = {}  # of cases read so far

    @classmethod
    def open(cls, path: Path, *, threads: int | None = None) -> Store:
        """Open the store at `path` with `threads` that read and unpack (default: one per CPU).

        Raises StoreError if it does not exist, is not a store, is unfinished, damaged, or of another schema.
        """
        path = Path(path)
        if not path.exists():
            raise StoreError(f"there is no store {path}", f"Create one: hpc-tumor prepare-data SOURCE {path}")
        about = read_about(path)
        if about is None:
            raise StoreError(f"{path} is not a store of hpc-tumor", "Create one: hpc-tumor prepare-data SOURCE STORE")
        readable = _READABLE.get(str(about.get("task")), (about["schema"],))  # of another task: see index_fault
        if about["schema"] not in readable:
            way = "Update hpc-tumor, or convert" if about["schema"] > readable[-1] else "Convert"
            raise StoreError(
                f"{path} has schema {about['schema']}; this version reads {' and '.join(map(str, readable))}",
                f"{way} again: hpc-tumor prepare-data SOURCE {path} --overwrite",
            )
        if about.get("complete") is not True:
            way = "Run the same hpc-tumor prepare-data again to continue."
            if about["schema"] != readable[-1]:
                way = f"Convert again: hpc-tumor prepare-data SOURCE {path} --overwrite"
            raise StoreError(f"{path} is unfinished", way)
        try:
            return cls(path, about, threads)
        except (KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error!r})", _ANEW) from error

    def __len__(self) -> int:
        return len(self.case_ids)

    @cached_property
    def group(self) -> NDArray[np.int64]:
        """`(n,)`: group number; images or cases of one group are identical or near copies."""
        return self._column("copies" if self.task == "classification" and self.names_patients else "group").astype(int)

    # BraTS: axial slices of cases

    shapes = _column("shape", "`(n, 3)`: Z, Y, X of each case.", np.int64)
    statistics = _column(
        "statistics",
        "`(n, 4, 2)`: mean and standard deviation over the brain, per modality; deviation 0 without a brain.",
    )
    background = _column("background", "`(n, 4)`: the value outside the brain, per modality.")
    tolerance = _column(
        "tolerance",
        "`(n, 4)`: largest deviation from the background of a voxel outside the brain, per modality; usually 0.",
    )
    brain_voxels = _column("brain_voxels", "`(n,)`: number of brain voxels.", np.int64)
    contrast = _column("contrast", "`(n, 14)`: descriptor of `data.contrast`; NaN for a case without one.")
    label_counts = _column(
        "label_counts",
        "`(n, largest Z, labels)`: voxels of each of `labels` in each slice; 0 beyond a case's last slice.",
    )
    sketches = _column(
        "sketch",
        "`(n, 4, 16, 16, 16)`: descriptors of each case's scans, used to find copies: see sketch.py.",
    )
    _spacing = _column("spacing")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the label values from 0 on, including the resection cavity if a case has one."""
        return tuple(self._index["labels"])

    @property
    def editions(self) -> list[Edition]:
        """Label edition of each case's segmentation."""
        return [EDITIONS[name] for name in self._index["editions"]]

    @cached_property
    def slice_background(self) -> NDArray[np.float64] | None:
        """`(n, largest Z, 4)`: the value outside the brain in each slice if slices differ in it, else None."""
        return self._column("slice_background") if self.dataset == "brats-h5" else None

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the slices as read: the smallest that holds all cases without loss."""
        return np.result_type(*(np.dtype(name) for name in set(self._index["dtypes"])))

    @cached_property
    def slice_shape(self) -> tuple[int, int]:
        """(Y, X) of the slices. Raises DataError if cases differ in it."""
        sizes = np.unique(self.shapes[:, 1:], axis=0)
        if len(sizes) > 1:
            text = ", ".join(f"{y} × {x}" for y, x in sizes.tolist()[:4])
            raise DataError(f"{self.path}: slices differ in size between cases ({text}): they cannot be batched.")
        return int(sizes[0, 0]), int(sizes[0, 1])

    @property
    def clinical(self) -> list[dict[str, Any]]:
        """Clinical facts of each case: grade, age, survival …; empty if unknown."""
        return list(self._index["clinical"])

    def slices(self, case: int) -> int:
        """Number of axial slices of the case."""
        return int(self.shapes[case, 0])

    def spacing(self, case: int) -> tuple[float, float, float]:
        """Voxel size along z, y, x in mm."""
        z, y, x = self._spacing[case].tolist()
        return z, y, x

    def case_metadata(self, case: int) -> dict[str, Any]:
        """Read the metadata of one case: source files, affine, meta …"""
        attributes = read_attributes(self.path / "cases" / self.case_ids[case])
        if attributes is None or not isinstance(attributes.get("hpc_tumor"), dict):
            raise self._damaged(f"the metadata of case {self.case_ids[case]}")
        return cast(dict[str, Any], attributes["hpc_tumor"])

    def affine(self, case: int) -> NDArray[np.float64]:
        """Return the affine `(4, 4)` from voxel (x, y, z) of the stored volume to mm."""
        try:
            affine = np.array(self.case_metadata(case)["affine"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"the affine of case {self.case_ids[case]}") from error
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise self._damaged(f"the affine of case {self.case_ids[case]}")
        return affine

    def header(self, case: int) -> bytes:
        """Return the NIfTI header of the source."""
        try:
            return base64.b64decode(self.case_metadata(case)["header"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"the header of case {self.case_ids[case]}") from error

    def read_slices(
        self, refs: ArrayLike, into: Sequence[Any] | None = None
    ) -> Pending[tuple[NDArray[Any], NDArray[np.uint8]]]:
        """Start reading axial slices, `(n, 2)` pairs of case and z.

        The result is images `(n, 4, Y, X)` in `dtype` and labels `(n, Y, X)` uint8: new arrays, or the two in `into`,
        which must not be used before `result()` returns.
        """
        pairs = np.asarray(refs, dtype=np.int64).reshape(-1, 2)
        if not len(pairs):
            raise ValueError("read_slices needs at least one slice")
        image, label = into or self.empty_slices(len(pairs))
        places = pairs.tolist()
        for case, z in places:
            self._check_slice(case, z)
        return Pending((image, label), self.threads.start(self._read_slices, len(places), places, image, label))

    def read_slice(self, case: int, z: int, image: NDArray[Any], label: NDArray[np.uint8]) -> None:
        """Read one axial slice into `image` `(4, Y, X)` and `label` `(Y, X)`, in the calling thread."""
        self._check_slice(case, z)
        read = self._files.read_chunk
        try:
            depth, volume = self._depths[case], self._volumes.get(case) or self._open_case(case)
            image_shard, label_shard, dtype = volume
            direct = image.dtype == dtype and image.flags.c_contiguous
            values = image if direct else np.empty(image.shape, dtype)
            read(image_shard, depth, z, values)
            read(label_shard, depth, z, label)
        except (DamagedError, OSError) as error:
            raise self._unreadable(f"slice {z} of case {self.case_ids[case]}", error) from error
        if not direct:
            image[...] = values

    def empty_slices(self, n: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Allocate arrays for `n` slices and their labels. Raises DataError if cases differ in slice size."""
        size = self.slice_shape
        return np.empty((n, self._channels, *size), self.dtype), np.empty((n, *size), np.uint8)

    def read_volume(self, case: int) -> Pending[tuple[NDArray[Any], NDArray[np.uint8]]]:
        """Start reading a whole case: image `(4, Z, Y, X)` in `dtype` and labels `(Z, Y, X)` uint8."""
        depth, *size = self.shapes[case].tolist()
        image = np.empty((self._channels, depth, *size), self.dtype)
        label = np.empty((depth, *size), np.uint8)
        places = [(case, z) for z in range(depth)]
        slices = image.swapaxes(0, 1)
        return Pending((image, label), self.threads.start(self._read_slices, depth, places, slices, label))

    # Brain MRI: images.

    label = _column("label", "`(n,)`: class of each image.", np.int64)
    identical = _column("identical", "`(n,)`: group number; images of one group have identical pixels.", np.int64)
    sizes = _column("size", "`(n, 2)`: height and width in pixels of each image's source.", np.int64)
    boxes = _column(
        "box", "`(n, 4)`: left, top, right and bottom in pixels of the crop of each image's source.", np.int64
    )
    thumbnails = _column("thumbnail", "`(n, 32, 32)`: uncropped thumbnail of each image, used to find near copies.")
    # Since schema 2; StoreError before.
    heads = _column("head", "`(n, 32, 32)`: thumbnail of each image cropped to the head.")
    known_slice = _column(
        "slice", "`(n,)`: number of the slice of the Cheng set that an image shows; 0 if unknown.", np.int64
    )
    correlation = _column(
        "correlation",
        "`(n,)`: correlation with the most similar slice of the Cheng set; NaN where the source names the slice.",
    )

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by number."""
        return list(self._index["classes"])

    @property
    def names_patients(self) -> bool:
        """Return False for images of schema 1, which lack patients, slices, sources and heads."""
        return int(self.about["schema"]) >= 2

    @property
    def patients(self) -> list[str]:
        """Patient of each image, "" if unknown. StoreError for schema 1."""
        return self.text_column("patient")

    @property
    def sources(self) -> list[str]:
        """Name of the source of each image, "" in a store of one source. StoreError for schema 1."""
        return self.text_column("source")

    @property
    def paths(self) -> list[str]:
        """Each image's path below its source."""
        return self.case_ids

    @cached_property
    def part(self) -> NDArray[np.str_]:
        """`(n,)`: "train" or "test", as published."""
        return np.where(self._column("part") == 1, "test", "train")

    def text_column(self, name: str) -> list[Any]:
        """Return a column of the index's attributes: scans, dtypes; mode, sha256, signature, bytes."""
        self._check_age(name)
        return list(self._index[name])

    def read_images(self, indices: ArrayLike, into: NDArray[np.uint8] | None = None) -> Pending[NDArray[np.uint8]]:
        """Start reading images `(n, H, W)` uint8 into a new array or `into`."""
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1).tolist()
        pixels = self.empty_images(len(chosen)) if into is None else into
        for index in chosen:
            if not 0 <= index < len(self):
                raise IndexError(f"there is no image {index}")
        return self._images.start(chosen, pixels)

    @cached_property
    def masks(self) -> Masks:
        """Tumour masks and borders of the images; only the Cheng set has them."""
        digests = self._index.get("mask")
        if digests is None:
            return Masks([""] * len(self), self._images.shape, None, np.empty((len(self), 0, 2)))
        return Masks(digests, self._images.shape, self._stack(f"{MASKS}/0"), self._column("border"))

    def empty_images(self, n: int) -> NDArray[np.uint8]:
        """Allocate an array for `n` images."""
        return np.empty((n, *self._images.shape), np.uint8)

    @cached_property
    def _depths(self) -> list[int]:
        return cast(list[int], self.shapes[:, 0].tolist())

    @cached_property
    def _channels(self) -> int:
        return int(self.statistics.shape[1])

    @cached_property
    def _images(self) -> ImageStack:
        return self._stack(IMAGES)

    def _stack(self, path: str) -> ImageStack:
        def unreadable(index: int, error: Exception) -> DataError:
            return self._unreadable(f"the image {self.case_ids[index]}", error)

        try:
            return ImageStack(self.path / path, len(self), self._files, self.threads, unreadable)
        except (DamagedError, OSError) as error:
            raise self._damaged("the array of images" if path == IMAGES else "the array of masks", error) from error

    def _open_case(self, case: int) -> _Volume:
        """Check a case's array metadata against the index; return its shards. Raises DamagedError and OSError."""
        folder, shape = self.path / "cases" / self.case_ids[case], self.shapes[case].tolist()
        image = volume_layout([self._channels, *shape], np.dtype(self._index["dtypes"][case]))
        shards = []
        for name, layout in (("0", image), ("labels/seg/0", volume_layout(shape, np.dtype(np.uint8)))):
            ArrayLayout.read(folder / name, **vars(layout))
            shards.append(str(layout.file(folder / name, 0)))
        self._volumes[case] = opened = (shards[0], shards[1], image.dtype)
        return opened

    def _check_slice(self, case: int, z: int) -> None:
        if not (0 <= case < len(self) and 0 <= z < self._depths[case]):
            raise IndexError(f"there is no slice {z} of case {case}")

    def _read_slices(self, places: Sequence[tuple[int, int]], images: Any, labels: Any) -> None:
        for (case, z), image, label in zip(places, images, labels, strict=True):
            self.read_slice(case, z, image, label)

    def _check_age(self, column: str) -> None:
        if column in SINCE_2 and not self.names_patients:
            way = f"Bring it up to date, without its source: hpc-tumor patients {self.path}"
            raise StoreError(f"{self.path} was converted by an earlier version and names no patients", way)

    def _column(self, name: str) -> NDArray[Any]:
        self._check_age(name)
        try:
            values = read_column(self.path / "index", name, self._files)
        except (ValueError, OSError, MemoryError) as error:
            raise self._damaged(f"the index column {name}", error) from error
        if len(values) != len(self) or not is_valid_column(name, values, self._index):
            raise self._damaged(f"the index column {name}")
        return values

    def _damaged(self, what: str, error: Exception | None = None) -> DataError:
        fault = str(error) if isinstance(error, RewrittenError) else f"{self.path}: {what} is missing or damaged"
        return DataError(
            f"{fault}. If it is a case, remove its folder and run prepare-data again; otherwise convert again with"
            " --overwrite."
        )

    def _unreadable(self, what: str, error: Exception) -> DataError:
        if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
            return self._damaged(what, error)
        return DataError(f"{self.path}: {what} cannot be read: {error.strerror or error}. Is its disk still mounted?")
