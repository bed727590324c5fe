"""Synthetic raw datasets in the layouts of BraTS 2020, the Brain Tumor MRI Dataset and the Cheng set.

The anatomy is not realistic. The images have the properties that training depends on: skull-stripped heads on exact
zeros, tissue contrast per modality, intensity scales that differ between patients, bias fields, noise, nested tumours;
and head slices of mixed sizes and modes whose class depends on shape and position rather than brightness.
"""

from __future__ import annotations

import gzip
import io
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpc_tumor.data.phantom.cheng import write_slices
from hpc_tumor.data.phantom.patient import make_patient
from hpc_tumor.data.phantom.slices import make_head_image
from hpc_tumor.errors import UsageError, unknown
from hpc_tumor.system.atomic import folder_to_write, write_bytes, write_error
from hpc_tumor.vocabulary import CLASSES

Progress = Callable[[int, int], None]

DATASETS = ("brats", "brain-mri", "cheng")
BRATS_SHAPE = (240, 240, 155)
SMALLEST_SHAPE = (32, 32, 12)
# In the published dataset, 216 test images of 7,023 images in all repeat a training image.
DUPLICATES = 0.03  # share of brain-mri images in Testing with the same pixels as one in Training
JPEG_QUALITY = 90
MAPPING_HEADER = (
    "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID"
)
SURVIVAL_HEADER = "Brats20ID,Age,Survival_days,Extent_of_Resection"


def make_phantom(
    directory: Path,
    dataset: str,
    cases: int,
    seed: int,
    *,
    shape: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write `cases` synthetic patients ("brats") or images (others) below `directory`; return their paths.

    The same seed gives the same bytes with the same library versions, and a case does not depend on their number. A
    call that fails or is interrupted leaves nothing behind.

    - brats, in the layout of BraTS 2020, with name_mapping.csv and survival_info.csv:
      `<id>_{flair,t1,t1ce,t2}.nii.gz` (int16) and `<id>_seg.nii.gz` (uint8; 1 NCR, 2 ED, 4 ET) of `shape` (x, y, z) in
      voxels of 1 mm; head and tumour scale with the shape. The first three have all labels; some later ones lack ET or
      NCR.
    - brain-mri: `Training/<class>/*.jpg` and `Testing/<class>/*.jpg`. Classes alternate, and one in five images of a
      class is for testing. Sizes (150 to 512) and modes (L, RGB) are mixed and independent of the class. A share of
      DUPLICATES is in Testing with the same decoded pixels, but other bytes, as an image in Training.
    - cheng: `<n>.mat` with the numbers, classes and patients of published slices, and cvind.mat: see `cheng`.

    Args:
        shape: only for brats.
        progress: called with (done, total) after each case.

    Raises UsageError for an unknown dataset, a shape for images or below 32 × 32 × 12, fewer than one case, a negative
    seed, and a folder that is not empty or cannot be written; HpcTumorError for a full disk.
    """
    if dataset not in DATASETS:
        raise unknown("phantom dataset", dataset, DATASETS)
    if dataset != "brats" and shape is not None:
        raise UsageError(f"the {dataset} phantom has mixed sizes: leave out the shape, which is only for brats.")
    size = tuple(int(n) for n in shape or BRATS_SHAPE)
    if len(size) != 3 or any(n < least for n, least in zip(size, SMALLEST_SHAPE, strict=True)):
        raise UsageError(f"shape {tuple(size)} of a brats phantom must be (x, y, z) of at least {SMALLEST_SHAPE}.")
    _check_target(directory, cases, seed)
    tell = progress or (lambda done, total: None)
    if dataset == "brats":
        made = ("BraTS20_Training_*", ".BraTS20_Training_*", "name_mapping.csv", "survival_info.csv")
        with _whole(directory, *made):
            return _write_patients(directory, cases, seed, size, tell)
    if dataset == "cheng":
        with _whole(directory, "*.mat"):
            return write_slices(directory, cases, seed, tell)
    with _whole(directory, "Training", "Testing"):
        return _write_images(directory, cases, seed, tell)


def _write_patients(directory: Path, cases: int, seed: int, size: tuple[int, ...], progress: Progress) -> list[Path]:
    folders, grades, survivals = [], [], []
    for index in range(cases):
        name = f"BraTS20_Training_{index + 1:03d}"
        volumes = make_patient(np.random.default_rng([seed, 0, index]), size, index)
        folders.append(_write_patient(directory, name, volumes))
        enhancing = bool((volumes["seg"] == 4).any())
        grade, survival = _clinical(np.random.default_rng([seed, 1, index]), name, enhancing)
        grades.append(grade)
        survivals += survival
        progress(index + 1, cases)
    _write_csv(directory / "name_mapping.csv", MAPPING_HEADER, grades, newline="\n")
    _write_csv(directory / "survival_info.csv", SURVIVAL_HEADER, survivals, newline="\r\n")
    return folders


def _write_images(directory: Path, cases: int, seed: int, progress: Progress) -> list[Path]:
    for part in ("Training", "Testing"):
        for name in CLASSES:
            (directory / part / name).mkdir(parents=True)
    paths = []
    for index in range(cases):
        name, source = _head_file(index)
        image = make_head_image(np.random.default_rng([seed, 2, source]), CLASSES[index % len(CLASSES)])
        write_bytes(directory / name, _jpeg(image, comment="" if source == index else "saved again"))
        paths.append(directory / name)
        progress(index + 1, cases)
    return paths


def _check_target(directory: Path, cases: int, seed: int) -> None:
    if cases < 1:
        raise UsageError(f"{cases} cases: must be at least 1.")
    if seed < 0:
        raise UsageError(f"seed {seed} must not be negative.")
    try:
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{directory} is a file: name a new or empty folder for the phantom.")
        if directory.is_dir() and any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty: name a new folder for the phantom, or delete this one first.")
    except OSError as error:
        raise write_error(error, directory, "the phantom") from error


@contextmanager
def _whole(directory: Path, *made: str) -> Iterator[None]:
    """Create `directory` if necessary; if the block fails, remove everything that matches the patterns `made`."""
    with folder_to_write(directory, "the phantom"):
        try:
            yield
        except BaseException:
            for path in [path for pattern in made for path in directory.glob(pattern)]:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            raise


def _write_patient(directory: Path, name: str, volumes: dict[str, NDArray[Any]]) -> Path:
    beside = directory / f".{name}"
    beside.mkdir()
    for modality, volume in volumes.items():
        write_bytes(beside / f"{name}_{modality}.nii.gz", _nifti(volume))
    return beside.rename(directory / name)


def _head_file(index: int) -> tuple[str, int]:
    """Return the path of image `index` below the root, and the index of its content: an earlier one for a copy."""
    turn, label = divmod(index, len(CLASSES))
    name = CLASSES[label]
    if turn % 5 != 1:
        return f"Training/{name}/Tr-{name[:2]}_{turn - (turn + 3) // 5:04d}.jpg", index
    order, share = len(CLASSES) * (turn // 5) + label, 5 * DUPLICATES  # share of the test images, which are a fifth
    copy = math.floor((order + 1) * share) > math.floor(order * share)
    return f"Testing/{name}/Te-{name[:2]}_{turn // 5:04d}.jpg", index - len(CLASSES) if copy else index


def _nifti(volume: NDArray[Any]) -> bytes:
    """Encode gzipped NIfTI-1 with the header of the BraTS files: 1 mm, left-posterior-superior, only a qform."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = volume.shape[1] - 1
    image = nib.Nifti1Image(volume, None)
    image.header.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _jpeg(image: Image.Image, comment: str) -> bytes:
    """Encode `image` as JPEG; a comment changes the bytes but not the pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, comment=comment)
    return buffer.getvalue()


def _clinical(rng: np.random.Generator, name: str, enhancing: bool) -> tuple[str, list[str]]:
    """Generate a row of name_mapping.csv, and at most one of survival_info.csv, with the quirks of the real files."""
    grade = "HGG" if enhancing else "LGG"
    number = name.rpartition("_")[2]
    mapping = f"{grade},NA,NA,NA,BraTS19_PHANTOM_{number}_1,{name}"
    days = int(rng.integers(5, 1800))
    survival = f"ALIVE ({days} days later)" if rng.random() < 0.05 else str(days)
    row = f"{name},{rng.uniform(20, 86):.3f},{survival},{rng.choice(['GTR', 'NA', 'STR'], p=[0.5, 0.45, 0.05])}"
    return mapping, [row] if enhancing and rng.random() < 0.8 else []


def _write_csv(path: Path, header: str, rows: Sequence[str], newline: str) -> None:
    write_bytes(path, "".join(line + newline for line in (header, *rows)).encode())
