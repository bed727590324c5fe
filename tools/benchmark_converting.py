#!/usr/bin/env python3
"""How fast raw files become a store, and how large it is, beside plain loops measured in the same run.

    python tools/benchmark_converting.py                    real samples from HPC_TUMOR_REAL_DATA, or phantoms made here
    python tools/benchmark_converting.py --data DIR         DIR/brats, DIR/brain-mri, DIR/brain-mri-native: any

Every figure is CPU time of one process on one core, so that other work on the machine counts for little; ours is the
whole of `prepare-data` with one worker: listing, reading, checks, checksums, statistics, groups of duplicates, index.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import zarr
from benchmark_machine import describe_machine
from PIL import Image

from hpc_tumor.data.case import Case, CaseReader
from hpc_tumor.data.convert.case import Unit, convert_unit
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.brain_mri import IMAGE_SIZE, BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader

BRATS_2020 = 369  # patients
BRAIN_MRI = 7023  # images
LEAST_PATIENTS, LEAST_IMAGES = 6, 500  # fewer are repeated, so that what a store costs once does not count too much
Times = list[float]


def main() -> None:
    options = _options()
    print(describe_machine())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="benchmark-converting-") as name:
        work = Path(name)
        data = options.data or _phantoms(work / "phantoms")
        print(f"Data: {'phantoms' if options.data is None else data}. {options.repeats} repeats: best (median).\n")
        if (data / "brats").is_dir():
            patients(data / "brats", work, options.repeats)
        for folder in ("brain-mri-native", "brain-mri"):
            if (data / folder).is_dir():
                images(data / folder, work, options.repeats)


def patients(source: Path, work: Path, repeats: int) -> None:
    """Compare on BraTS patients, and print."""
    raw = sum(case.bytes for case in BraTSReader().list_cases(source))
    once, source = _several(source, work / "patients", LEAST_PATIENTS)
    cases = BraTSReader().list_cases(source)
    plain, ours = alternate(
        lambda: [plain_patient(case, work / "plain" / case.id) for case in cases],
        lambda: prepare_dataset(BraTSReader(), source, work / "store", workers=1),
        len(cases), work, repeats,
    )  # fmt: skip
    print(f"BraTS, {once} patients, {len(cases) // once} times over; CPU seconds per patient")
    show("nibabel, get_fdata, zarr's defaults", plain)
    show("prepare-data", ours)
    print(f"  ratio                                {min(plain) / min(ours):6.2f} ({_ratio(plain, ours):.2f})")
    seconds = BRATS_2020 * statistics.median(ours) / 2
    print(f"  projected from these: {BRATS_2020} patients on two cores in {seconds:.0f} s, if the disk keeps up")
    prepare_dataset(BraTSReader(), source, work / "store", workers=1)
    folders = [work / "store" / "cases" / case.id for case in cases]
    held, files = [_size(folder) for folder in folders], [len(_files(folder)) for folder in folders]
    share = sum(held) / sum(case.bytes for case in cases)
    print(f"  store / source files                 {share:6.3f} of {raw / 1e6:.1f} MB")
    print(f"  files per patient                    {statistics.mean(files):6.1f}")
    print(f"  peak memory of a worker              {worker_peak(BraTSReader(), cases, work / 'peak'):6.0f} MB\n")
    shutil.rmtree(work / "store")
    shutil.rmtree(source)


def images(source: Path, work: Path, repeats: int) -> None:
    """Compare on a tree of images, and print."""
    once, many = _several(source, work / "images", LEAST_IMAGES)
    cases = BrainMRIReader().list_cases(many)
    plain, ours = alternate(
        lambda: plain_images(cases, work / "plain"),
        lambda: prepare_dataset(BrainMRIReader(), many, work / "store", workers=1),
        len(cases), work, repeats,
    )  # fmt: skip
    pixels = [Image.open(case.files["image"].path).size for case in cases[:once]]
    mean = statistics.mean(width * height for width, height in pixels)
    repeated = f"{once} images of {mean / 1e6:.3f} megapixels, {len(cases) // once} times over"
    print(f"{source.name}, {repeated}; images per CPU second")
    show("Pillow, one .npy per image", plain, rate=True)
    show("prepare-data", ours, rate=True)
    print(f"  ratio                                {min(plain) / min(ours):6.2f} ({_ratio(plain, ours):.2f})")
    print(f"  projected: {BRAIN_MRI} such images on two cores in {BRAIN_MRI * statistics.median(ours) / 2:.0f} s")
    peak = worker_peak(BrainMRIReader(), cases[:64], work / "peak")
    print(f"  peak memory of a worker              {peak:6.0f} MB\n")
    shutil.rmtree(many)


def plain_patient(case: Case, target: Path) -> None:
    """The loop that people write: float64 from nibabel, an array per file, zarr's codec and chunks."""
    group = zarr.open_group(target, mode="w")
    for role, file in case.files.items():
        group[role] = nib.load(file.path).get_fdata()


def plain_images(cases: list[Case], target: Path) -> None:
    """The loop that people write: decode, make grey, resize, save; no crop, no check, no hash."""
    target.mkdir(parents=True)
    for number, case in enumerate(cases):
        grey = Image.open(case.files["image"].path).convert("L")
        np.save(target / f"{number}.npy", np.asarray(grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)))


def alternate(
    plain: Callable[[], object], ours: Callable[[], object], cases: int, work: Path, repeats: int
) -> tuple[Times, Times]:
    """CPU seconds per case of both, measured in turns; the first turn warms up and does not count."""
    spent: tuple[Times, Times] = ([], [])
    for turn in range(repeats + 1):
        for run, times in zip((plain, ours), spent, strict=True):
            began = time.process_time()
            run()
            if turn:
                times.append((time.process_time() - began) / cases)
            shutil.rmtree(work / "plain", ignore_errors=True)
            shutil.rmtree(work / "store", ignore_errors=True)
    return spent


def worker_peak(reader: CaseReader, cases: list[Case], staged: Path) -> float:
    """MB resident in a fresh process, as a worker is, at its highest."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peak, reader, cases, staged).result()


def _peak(reader: CaseReader, cases: list[Case], staged: Path) -> float:
    if reader.task == "segmentation":
        for turn in range(3):
            for case in cases:
                convert_unit(Unit(reader, [case], staged / str(turn) / case.id, 1))
    else:
        convert_unit(Unit(reader, cases, staged / "0.images", 1))
    shutil.rmtree(staged)
    # Not ru_maxrss, which a new process takes over from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def show(name: str, times: Times, *, rate: bool = False) -> None:
    best, median = min(times), statistics.median(times)
    if rate:
        print(f"  {name:36} {1 / best:6.0f} ({1 / median:.0f})")
    else:
        print(f"  {name:36} {best:6.3f} ({median:.3f})")


def _ratio(plain: Times, ours: Times) -> float:
    return statistics.median(plain) / statistics.median(ours)


def _several(source: Path, many: Path, least: int) -> tuple[int, Path]:
    """How many cases `source` has, and a folder with so many copies of each that there are `least`."""
    reader: CaseReader = BraTSReader() if least == LEAST_PATIENTS else BrainMRIReader()
    cases = reader.list_cases(source)
    for i in range(-(-least // len(cases))):
        for case in cases:
            for file in case.files.values():
                inside = Path(file.relative)
                to = many / f"copy_{i}" / inside
                if reader.task == "segmentation":
                    to = many / f"{case.id}_{i}" / inside.name
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.path, to)
    return len(cases), many


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _phantoms(folder: Path) -> Path:
    make_phantom(folder / "brats", "brats", cases=2, seed=0)
    make_phantom(folder / "brain-mri", "brain-mri", cases=64, seed=0)
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    given = os.environ.get("HPC_TUMOR_REAL_DATA")
    parser.add_argument("--data", type=Path, default=Path(given) if given else None, help="folder of real samples")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
