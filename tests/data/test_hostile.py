"""Files of strangers: each is refused in one line that names it, or read as what it is; none takes the process along.

A fuzzer with a fixed seed makes them. They are read in a process that may not take much memory or time.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzzing
import fuzzing_images
import fuzzing_store
import h5py
import nibabel as nib
import numpy as np
import pytest
from bounded import Tally, Watch, in_worker
from raw_samples import write_case, write_patients, write_pictures

from hpc_tumor.atomic import plain
from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.brain_mri import MOST_PIXELS, BrainMRIReader
from hpc_tumor.data.brats import BraTSReader
from hpc_tumor.data.case import Case, SourceFile
from hpc_tumor.data.clinical_table import read_table
from hpc_tumor.data.h5_apart import H5Process, read_h5_apart
from hpc_tumor.data.h5_slice import read_h5
from hpc_tumor.data.nifti import MOST_VOXELS, read_nifti
from hpc_tumor.data.ome import image_metadata
from hpc_tumor.data.prepare import prepare_dataset
from hpc_tumor.data.store import Store
from hpc_tumor.errors import DataError

GZIP_RATIO = 1032
PIXEL_BYTES = 30  # decoding and what follows, per pixel
Source = Callable[[int, int], Iterator[fuzzing.Mutant]]


def run(task: Callable[..., None], *arguments: Any, least: int) -> Tally:
    tally = in_worker(task, *arguments)
    assert not tally.failures, "\n".join([f"{len(tally.failures)} of {tally.mutants}:", *tally.failures[:40]])
    assert tally.mutants >= least
    assert min(tally.refused, tally.read) > least / 50, tally  # the fuzzer is neither too coarse nor too fine
    return tally


def source_file(path: Path) -> SourceFile:
    stat = path.stat()
    return SourceFile(path, path.name, stat.st_size, stat.st_mtime_ns)


# -- NIfTI and gzip ----------------------------------------------------------------------------------------------------


def read_volumes(watch: Watch, folder: Path, source: Source, seed: int, count: int) -> None:
    path = folder / "mutant.nii.gz"
    for name, data in source(seed, count):
        path.write_bytes(data)
        holds = 24 * min(len(data) * (GZIP_RATIO if data[:2] == b"\x1f\x8b" else 1), 8 * MOST_VOXELS)
        volume = watch.read(name, lambda: read_nifti(path), names=str(path), holds=holds)
        theirs = None if volume is None or len(data) > 100_000 else nibabels(data)  # it takes a minute for many parts
        if theirs is not None and not same(volume.array, theirs.T):
            watch.wrong(name, "nibabel reads other values")


def nibabels(data: bytes) -> np.ndarray | None:
    """What nibabel reads, as `(X, Y, Z)` float64; None where it reads nothing."""
    try:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        image = (nib.Nifti1Image if raw[344:347] == b"n+1" else nib.Nifti2Image).from_bytes(raw)
        if image.dataobj.offset < image.header["sizeof_hdr"] + 4:  # it takes the header for voxels
            return None
        with np.errstate(all="ignore"):
            values = image.get_fdata()
        return values.reshape(values.shape[:3])
    except Exception:
        return None


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        return ours.shape == theirs.shape and np.allclose(
            ours.astype(np.float32), theirs.astype(np.float32), rtol=1e-5, equal_nan=True
        )


def test_nifti_headers_that_lie(tmp_path: Path) -> None:
    run(read_volumes, tmp_path, fuzzing.nifti, 1, 1500, least=1500)


def test_gzip_streams(tmp_path: Path) -> None:
    run(read_volumes, tmp_path, fuzzing.packed, 2, 500, least=500)


def read_patients(watch: Watch, folder: Path, seed: int, count: int) -> None:
    """Each mutant takes the place of one file of a patient, whose statistics and metadata must be sound."""
    write_case(folder / "Case", ending=".nii")
    (case,) = BraTSReader().list_cases(folder)
    random = np.random.default_rng(seed)
    good = {role: file.path.read_bytes() for role, file in case.files.items()}
    for _ in range(count):
        role = sorted(good)[random.integers(len(good))]
        name, data = fuzzing.lying_header(random, good[role])
        case.files[role].path.write_bytes(data)
        result = watch.read(
            f"{role}: {name}", lambda: patient(case), names=str(case.folder), holds=200 * 8 * 720
        )  # fmt: skip
        case.files[role].path.write_bytes(good[role])
        if result is not None and not all_finite(result):
            watch.wrong(f"{role}: {name}", "its metadata holds values that are not numbers")


def patient(case: Case) -> dict[str, Any]:
    data = BraTSReader().read_case(case)
    brain = brain_statistics(data.image)
    metadata = {"ome": image_metadata(data.id, data.spacing, brain), "affine": data.affine, "moments": brain.moments}
    channel = metadata["ome"]["omero"]["channels"][0]["window"]
    assert channel["min"] <= channel["start"] < channel["end"] <= channel["max"], channel
    return metadata


def all_finite(value: Any) -> bool:
    return "null" not in json.dumps(plain(value), allow_nan=False)


def test_patients_with_one_file_that_lies(tmp_path: Path) -> None:
    run(read_patients, tmp_path, 3, 400, least=400)


# -- images ------------------------------------------------------------------------------------------------------------


def read_images(watch: Watch, folder: Path, source: Source, seed: int, count: int) -> None:
    path = folder / "mutant.jpg"
    for name, data in source(seed, count):
        path.write_bytes(data)
        case = Case("mutant.jpg", {"image": source_file(path)}, path, {"class": "glioma", "part": "train"})
        holds = 2 * len(data) + PIXEL_BYTES * min(8 * GZIP_RATIO * len(data), MOST_PIXELS)
        image = watch.read(name, lambda: BrainMRIReader(64).read_case(case), names=str(path), holds=holds)  # noqa: B023
        if image is not None and (image.image.shape, image.image.dtype) != ((64, 64), np.uint8):
            watch.wrong(name, f"gives {image.image.shape}")


def test_jpegs(tmp_path: Path) -> None:
    run(read_images, tmp_path, fuzzing_images.jpeg, 4, 700, least=700)


def test_pngs(tmp_path: Path) -> None:
    run(read_images, tmp_path, fuzzing_images.png, 5, 700, least=700)


# -- tables and HDF5 ---------------------------------------------------------------------------------------------------

TABLE = "Brats20ID,Age,Survival_days,Extent_of_Resection\r\n" + "".join(
    f"BraTS20_Training_{i:03},{40 + i}.463,{('289', 'ALIVE (361 days later)')[i % 2]},{('GTR', 'NA', 'STR')[i % 3]}\r\n"
    for i in range(1, 9)
)


def read_tables(watch: Watch, folder: Path, seed: int, count: int) -> None:
    path = folder / "survival_info.csv"
    for name, data in fuzzing.csv(seed, count, TABLE):
        path.write_bytes(data)
        watch.read(name, lambda: read_table(source_file(path)), names=path.name, holds=200 * len(data))


def test_tables(tmp_path: Path) -> None:
    run(read_tables, tmp_path, 6, 500, least=500)


H5_DATASETS = {"image": "f", "mask": "u"}


def h5_sample() -> bytes:
    file = io.BytesIO()
    random = np.random.default_rng(0)
    with h5py.File(file, "w") as group:
        group.create_dataset("image", data=random.normal(size=(12, 10, 4)), chunks=(6, 5, 4), compression="gzip")
        group.create_dataset("mask", data=np.zeros((12, 10, 3), np.uint8))
    return file.getvalue()


def read_h5s(watch: Watch, folder: Path, seed: int, count: int) -> None:
    random, path, good = np.random.default_rng(seed), folder / "volume_1_slice_0.h5", h5_sample()
    for _ in range(count):
        name, data = fuzzing.damaged(random, good)
        path.write_bytes(data)
        watch.read(name, lambda: read_h5_apart(path, H5_DATASETS), names=str(path), holds=GZIP_RATIO * len(data))


def test_h5_files(tmp_path: Path) -> None:
    run(read_h5s, tmp_path, 7, 500, least=500)


def test_h5_file_that_takes_its_reader_along(tmp_path: Path) -> None:
    """Byte 928, of the filters of a dataset, from 11 to 123: HDF5 2.0 writes outside its memory, and aborts."""
    path, good = tmp_path / "volume_1_slice_0.h5", h5_sample()
    path.write_bytes(good[:928] + b"\x7b" + good[929:])
    for _ in range(3):
        with pytest.raises(DataError, match=r"volume_1_slice_0\.h5"):
            read_h5_apart(path, H5_DATASETS)
    path.write_bytes(good)
    for reads in (read_h5_apart, read_h5):
        arrays, _ = reads(path, H5_DATASETS)
        assert arrays["image"].shape == (12, 10, 4)
    ends = H5Process([sys.executable, "-c", "import os; input(); os.abort()"])
    hangs = H5Process([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.5)
    lies = H5Process([sys.executable, "-c", "input(); print('{}', flush=True); input()"])
    for process in (ends, hangs, lies):
        with pytest.raises(DataError, match=r"volume_1_slice_0\.h5 is not a sound HDF5 file"):
            process.read(path, H5_DATASETS)
        process.close()


# -- stores ------------------------------------------------------------------------------------------------------------


def read_store(path: Path) -> dict[str, Any]:
    """All that a store gives."""
    store = Store.open(path, threads=1)
    cases = range(len(store))
    all_of: dict[str, Any] = {"ids": store.case_ids, "kind": (store.task, store.dataset, store.fingerprint)}
    if store.task == "segmentation":
        for name in ("shapes", "statistics", "background", "label_counts", "dtype", "slice_shape", "clinical"):
            all_of[name] = getattr(store, name)
        for case in cases:
            all_of[f"case {case}"] = type(store.case_metadata(case)), store.spacing(case), store.slices(case)
            all_of[f"space {case}"] = store.affine(case), store.header(case)
            all_of[f"volume {case}"] = store.read_volume(case).result()
        all_of["slices"] = store.read_slices([(case, 1) for case in cases]).result()
    else:
        for name in ("classes", "paths", "label", "part", "identical", "group"):
            all_of[name] = getattr(store, name)
        all_of["columns"] = len(store.text_column("mode")), len(store.text_column("sha256"))
        all_of["images"] = store.read_images(list(cases)).result()
    return all_of


def mutate_store(watch: Watch, folder: Path, images: bool, seed: int, count: int) -> None:
    if images:
        prepare_dataset(BrainMRIReader(32), write_pictures(folder / "raw", 2), folder / "s.zarr", workers=1)
    else:
        prepare_dataset(BraTSReader(), write_patients(folder / "raw", 2), folder / "s.zarr", workers=1)
    path = folder / "s.zarr"
    good = read_store(path)
    random = np.random.default_rng(seed)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for _ in range(count):
        file = files[random.integers(len(files))]
        data = file.read_bytes()
        name, mutant = shard_or_json(random, file, data)
        file.write_bytes(mutant)
        result = watch.read(f"{file.relative_to(path)}: {name}", lambda: read_store(path), names=str(path))
        file.write_bytes(data)
        # Checksums tell damage, not intent: an index that was signed anew may name another chunk.
        if result is not None and file.name != "zarr.json" and "index entry" not in name and not equal(result, good):
            watch.wrong(f"{file.relative_to(path)}: {name}", "other values were read without a word")
        if result is not None and not well_formed(result, good):
            watch.wrong(f"{file.relative_to(path)}: {name}", "what was read has not the types that it should have")


def shard_or_json(random: np.random.Generator, file: Path, data: bytes) -> fuzzing.Mutant:
    if file.name == "zarr.json":
        return fuzzing_store.json_file(random, data)
    array = next(folder for folder in file.parents if (folder / "zarr.json").exists())
    document = json.loads((array / "zarr.json").read_bytes())
    shard = document["chunk_grid"]["configuration"]["chunk_shape"]
    chunk = document["codecs"][0]["configuration"]["chunk_shape"]
    return fuzzing_store.shard(random, data, int(np.prod(np.array(shard) // np.array(chunk))))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


def well_formed(one: Any, good: Any) -> bool:
    """Whether types, and shapes of arrays, are those of a sound store."""
    if isinstance(good, dict):
        return isinstance(one, dict) and all(well_formed(one[key], good[key]) for key in good if key in one)
    if isinstance(good, np.ndarray):
        return isinstance(one, np.ndarray) and one.shape == good.shape and one.dtype == good.dtype
    if isinstance(good, tuple | list) and good:
        return isinstance(one, tuple | list) and all(well_formed(item, good[0]) for item in one[:1])
    return type(one) is type(good)


def convert_again(watch: Watch, folder: Path, images: bool, seed: int, count: int) -> None:
    """A conversion that goes on with a store whose metadata is damaged: it refuses, or ends with a sound store."""
    reader = BrainMRIReader(32) if images else BraTSReader()
    source = write_pictures(folder / "raw", 1) if images else write_patients(folder / "raw", 2)
    prepare_dataset(reader, source, folder / "good.zarr", workers=1)
    random = np.random.default_rng(seed)
    files = sorted(file.relative_to(folder / "good.zarr") for file in (folder / "good.zarr").rglob("zarr.json"))
    for _ in range(count):
        shutil.copytree(folder / "good.zarr", folder / "s.zarr")
        file = folder / "s.zarr" / files[random.integers(len(files))]
        name, mutant = fuzzing_store.json_file(random, file.read_bytes())
        file.write_bytes(mutant)
        watch.read(
            f"{file.relative_to(folder)}: {name}",
            lambda: prepare_dataset(reader, source, folder / "s.zarr", workers=1),
            names=str(folder),
        )
        shutil.rmtree(folder / "s.zarr")


@pytest.mark.parametrize("images", [False, True], ids=["volumes", "images"])
def test_conversions_that_go_on(tmp_path: Path, images: bool) -> None:
    run(convert_again, tmp_path, images, 9, 100, least=100)


@pytest.mark.parametrize("images", [False, True], ids=["volumes", "images"])
def test_stores(tmp_path: Path, images: bool) -> None:
    run(mutate_store, tmp_path, images, 8, 600, least=600)


# -- all of it, at length ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        (read_volumes, (fuzzing.nifti, 101, 10_000)), (read_volumes, (fuzzing.packed, 102, 4000)),
        (read_patients, (103, 2000)), (read_images, (fuzzing_images.jpeg, 104, 5000)),
        (read_images, (fuzzing_images.png, 105, 5000)), (read_tables, (106, 2000)), (read_h5s, (107, 5000)),
        (mutate_store, (False, 108, 2000)), (mutate_store, (True, 108, 2000)), (convert_again, (False, 109, 500)),
        (convert_again, (True, 109, 500)),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)  # fmt: skip
def test_many_more(tmp_path: Path, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    run(task, tmp_path, *arguments, least=arguments[-1])
