"""Files of strangers: each is refused in one line that names it, or read as what it is; none takes the process along.

A fuzzer with a fixed seed makes them. They are read in a process that may not take much memory or time.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzzing
import fuzzing_images
import h5py
import nibabel as nib
import numpy as np
import pytest
from bounded import Watch, run
from cheng_samples import SIDE, arrays, write_mat
from raw_samples import list_cases, write_case
from scipy.io import savemat

from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.case import Case, SourceFile
from hpc_tumor.data.patients.reference import SLICES
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.cheng import read_folds, read_slice
from hpc_tumor.data.raw.clinical_table import read_table
from hpc_tumor.data.raw.files.h5_slice import read_h5
from hpc_tumor.data.raw.files.h5_subprocess import H5Process, read_h5_in_subprocess
from hpc_tumor.data.raw.files.image_files import MOST_PIXELS
from hpc_tumor.data.raw.files.nifti import MOST_VOXELS, open_nifti
from hpc_tumor.data.store.ome import image_metadata
from hpc_tumor.errors import DataError
from hpc_tumor.system.atomic import plain

GZIP_RATIO = 1032
PIXEL_BYTES = 30  # decoding and what follows, per pixel
Source = Callable[[int, int], Iterator[fuzzing.Mutant]]


def source_file(path: Path) -> SourceFile:
    stat = path.stat()
    return SourceFile(path, path.name, stat.st_size, stat.st_mtime_ns)


# -- NIfTI and gzip ----------------------------------------------------------------------------------------------------


def read_volumes(watch: Watch, folder: Path, source: Source, seed: int, count: int) -> None:
    path = folder / "mutant.nii.gz"
    for name, data in source(seed, count):
        path.write_bytes(data)
        holds = 24 * min(len(data) * (GZIP_RATIO if data[:2] == b"\x1f\x8b" else 1), 8 * MOST_VOXELS)
        volume = watch.read(name, lambda: open_nifti(path).read(), names=str(path), holds=holds)
        theirs = None if volume is None or len(data) > 100_000 else nibabels(data)  # it takes a minute for many parts
        if theirs is not None and not same(volume, theirs.T):
            watch.wrong(name, "nibabel reads other values")


def nibabels(data: bytes) -> np.ndarray | None:
    """Return the volume that nibabel reads, float64 `(X, Y, Z)`; None if it fails."""
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


@pytest.mark.slow
def test_nifti_headers_that_lie(tmp_path: Path) -> None:
    run(read_volumes, tmp_path, fuzzing.nifti, 1, 1200, least=1200)


def test_gzip_streams(tmp_path: Path) -> None:
    run(read_volumes, tmp_path, fuzzing.packed, 2, 500, least=500)


def read_patients(watch: Watch, folder: Path, seed: int, count: int) -> None:
    """Each mutant takes the place of one file of a patient, whose statistics and metadata must be sound."""
    write_case(folder / "Case", ending=".nii")
    (case,) = list_cases(BraTSReader(), folder)
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
    run(read_patients, tmp_path, 3, 300, least=300)


# -- images ------------------------------------------------------------------------------------------------------------


def read_images(watch: Watch, folder: Path, source: Source, seed: int, count: int) -> None:
    path = folder / f"mutant.{source.__name__}"
    for name, data in source(seed, count):
        path.write_bytes(data)
        case = Case(path.name, {"image": source_file(path)}, path, {"class": "glioma", "part": "train"})
        holds = 2 * len(data) + PIXEL_BYTES * min(8 * GZIP_RATIO * len(data), MOST_PIXELS)
        image = watch.read(name, lambda: BrainMRIReader(64).read_case(case), names=str(path), holds=holds)  # noqa: B023
        if image is not None and (image.image.shape, image.image.dtype) != ((64, 64), np.uint8):
            watch.wrong(name, f"gives {image.image.shape}")


def test_jpegs(tmp_path: Path) -> None:
    run(read_images, tmp_path, fuzzing_images.jpeg, 4, 600, least=600)


@pytest.mark.slow
def test_pngs(tmp_path: Path) -> None:
    run(read_images, tmp_path, fuzzing_images.png, 5, 600, least=600)


@pytest.mark.parametrize("source", [fuzzing_images.tiff, fuzzing_images.bmp, fuzzing_images.webp])
def test_other_images(tmp_path: Path, source: Source) -> None:
    run(read_images, tmp_path, source, 8, 400, least=400)


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
    run(read_tables, tmp_path, 6, 300, least=300)


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
        watch.read(
            name, lambda: read_h5_in_subprocess(path, H5_DATASETS), names=str(path), holds=GZIP_RATIO * len(data)
        )


@pytest.mark.slow
def test_h5_files(tmp_path: Path) -> None:
    run(read_h5s, tmp_path, 7, 500, least=500)


def read_mats(watch: Watch, folder: Path, seed: int, count: int) -> None:
    """Damage small files of slices and folds, of both versions; half of the bytes are those of the structure."""
    random, path = np.random.default_rng(seed), folder / "7.mat"
    values = {**arrays(), "image": np.diag(np.arange(SIDE)).astype(np.int16)}
    good = write_mat(path, values).read_bytes()
    old = io.BytesIO()
    savemat(old, {"cvind": np.ones((1, SLICES))}, do_compression=True)
    for _ in range(count):
        if random.random() < 0.2:
            name, data = fuzzing.damaged(random, old.getvalue())
            path.write_bytes(data)
            watch.read(name, lambda: read_folds(path), names=path.name, holds=GZIP_RATIO * len(data))
            continue
        name, data = fuzzing.damaged(random, good)
        path.write_bytes(data)
        found = watch.read(name, lambda: read_slice(path), names=path.name, holds=GZIP_RATIO * len(data))
        if found is not None:
            assert found.grey.shape == found.mask.shape
            assert found.mask.max() <= 1
            assert re.fullmatch(r"[\w.-]+", found.pid, re.ASCII)


@pytest.mark.slow
def test_mat_files(tmp_path: Path) -> None:
    run(read_mats, tmp_path, 9, 400, least=400)


@pytest.mark.slow
def test_h5_file_that_takes_its_reader_along(tmp_path: Path) -> None:
    """Byte 928, of the filters of a dataset, from 11 to 123: HDF5 2.0 writes outside its memory, and mostly aborts."""
    path, good = tmp_path / "volume_1_slice_0.h5", h5_sample()
    path.write_bytes(good[:928] + b"\x7b" + good[929:])
    for _ in range(3):
        try:
            read_h5_in_subprocess(path, H5_DATASETS)
        except DataError as error:
            assert "volume_1_slice_0.h5" in str(error)  # noqa: PT017 - what was written over may have been of no use
    path.write_bytes(good)
    for reads in (read_h5_in_subprocess, read_h5):
        arrays, _ = reads(path, H5_DATASETS)
        assert arrays["image"].shape == (12, 10, 4)
    ends = H5Process([sys.executable, "-c", "import os; input(); os.abort()"])
    hangs = H5Process([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.5)
    lies = H5Process([sys.executable, "-c", "input(); print('{}', flush=True); input()"])
    for process in (ends, hangs, lies):
        with pytest.raises(DataError, match=r"volume_1_slice_0\.h5 is not a valid HDF5 file"):
            process.read(path, H5_DATASETS)
        process.close()


def test_h5_file_is_not_blamed_for_what_one_before_it_did_to_the_reader(tmp_path: Path) -> None:
    path, harmed = tmp_path / "volume_1_slice_0.h5", tmp_path / "harmed"
    path.write_bytes(h5_sample())
    once = 'import os; input(); print(\'{"refused": "one before"}\', flush=True); input(); os.abort()'
    real = 'exec "$0" -P -m hpc_tumor.data.raw.files.h5_subprocess'
    script = f'if [ -e "$1" ]; then {real}; fi; touch "$1"; exec "$0" -c "$2"'
    process = H5Process(["sh", "-c", script, sys.executable, str(harmed), once])
    with pytest.raises(DataError, match="one before"):
        process.read(path, H5_DATASETS)
    assert process.read(path, H5_DATASETS)[0]["image"].shape == (12, 10, 4)
    process.close()


# -- all of it, at length ----------------------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        (read_volumes, (fuzzing.nifti, 101, 10_000)), (read_volumes, (fuzzing.packed, 102, 4000)),
        (read_patients, (103, 2000)), (read_images, (fuzzing_images.jpeg, 104, 5000)),
        (read_images, (fuzzing_images.png, 105, 5000)), (read_images, (fuzzing_images.tiff, 108, 5000)),
        (read_images, (fuzzing_images.bmp, 109, 3000)), (read_images, (fuzzing_images.webp, 110, 3000)),
        (read_tables, (106, 2000)), (read_h5s, (107, 5000)), (read_mats, (111, 5000)),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)  # fmt: skip
def test_many_more(tmp_path: Path, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    run(task, tmp_path, *arguments, least=arguments[-1])
