#!/usr/bin/env python3
"""Measure how fast raw files become a store, and its size, against plain loops measured in the same run.

    python tools/benchmark_converting.py                    real samples from HPC_TUMOR_REAL_DATA, or phantoms made here
    python tools/benchmark_converting.py --data DIR         any of DIR/brats, DIR/brain-mri and DIR/brain-mri-native
    python tools/benchmark_converting.py --arrays           only the store's arrays, against libraries that write and
                                                            read the same ones: zarr-python, zarrs, TensorStore

Every figure is CPU time of one process on one core, so that other work on the machine has little effect; ours is
all of `prepare-data` with one worker: listing, reading, checks, checksums, statistics, groups of duplicates, index.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tensorstore
import zarr
from benchmark_machine import describe_machine
from PIL import Image

from hpc_tumor.data.case import Case, CaseReader, walk
from hpc_tumor.data.convert.case import Unit, convert_unit
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.convert.writers import IMAGES_PER_SHARD
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.brain_mri import IMAGE_SIZE, BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.sources import inspect_listing
from hpc_tumor.data.store.nodes import ARRAY_FILE, IMAGE_COMPRESSION, ArrayLayout, volume_layout, write_array
from hpc_tumor.data.store.shards import ReadingThreads, ShardFiles

BRATS_2020 = 369  # patients
BRAIN_MRI = 7023  # images
LEAST_PATIENTS, LEAST_IMAGES = 6, 500  # fewer are repeated, so that the fixed cost of a store weighs little
BATCH, BATCHES = 32, 8  # chunks read together, and how many times in a turn
PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"  # zarr's own, in Python
LEAST_CHUNKS = 512  # of images: fewer are repeated
Times = list[float]
Write = Callable[[Path, np.ndarray, ArrayLayout], object]
Read = Callable[[list[tuple[int, int]]], object]  # chunks, as numbers of the array and of the chunk in it


def main() -> None:
    options = _options()
    print(describe_machine())
    if options.arrays:
        with tempfile.TemporaryDirectory(prefix="benchmark-arrays-") as name:
            data = options.data or _phantoms(Path(name) / "phantoms")
            print(f"Data: {'phantoms' if options.data is None else data}. Medians of {options.repeats} turns.")
            if importlib.util.find_spec("zarrs") is None:
                print("zarrs is not installed, so it is not compared.")
            for kind, values, layout in _samples(data):
                arrays(kind, values, layout, Path(name), options.repeats)
        return
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
    """Compare on BraTS patients and print the result."""
    raw = sum(case.bytes for case in list_cases(BraTSReader(), source))
    once, source = _several(source, work / "patients", LEAST_PATIENTS)
    cases = list_cases(BraTSReader(), source)
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
    """Compare on a tree of images and print the result."""
    once, many = _several(source, work / "images", LEAST_IMAGES)
    cases = list_cases(BrainMRIReader(), many)
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


def arrays(kind: str, values: list[np.ndarray], layout: ArrayLayout, work: Path, repeats: int) -> None:
    """Write `values` and read random chunks of them, alternately with this package and the libraries; print."""
    megabytes = sum(array.nbytes for array in values) / 1e6
    cores = sorted(os.sched_getaffinity(0))
    ways = {"ours": _write_ours, "zarr": _write_zarr, "zarrs": _write_zarrs, "TensorStore": _write_tensorstore}
    if importlib.util.find_spec("zarrs") is None:
        del ways["zarrs"]
    folders = {name: [work / f"{name}-{number}" for number in range(len(values))] for name in ways}
    spent: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    draw = np.random.default_rng(0)
    for turn in range(repeats + 1):
        chosen = np.stack([draw.integers(0, n, BATCH * BATCHES) for n in (len(values), layout.chunks)], 1).tolist()
        for name, write in ways.items():
            for folder in folders[name]:
                shutil.rmtree(folder, ignore_errors=True)
            os.sched_setaffinity(0, cores[:1])
            cpu, _ = _timed(lambda: [write(*each, layout) for each in zip(folders[name], values, strict=True)])  # noqa: B023
            figures = [megabytes / cpu]
            for threads in (1, len(cores)):
                os.sched_setaffinity(0, cores[:threads])
                read = _reader(name, folders[name], layout, threads)
                read(chosen[:BATCH])
                cpu, clock = _timed(lambda: [read(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH)])  # noqa: B023
                figures.append(len(chosen) / (cpu if threads == 1 else clock))
            spent[name] += [tuple(figures)] if turn else []
    os.sched_setaffinity(0, cores)
    print(
        f"\n{kind}: {len(values)} × {layout.shape}, {megabytes:.0f} MB, {layout.compression['cname']}; (ratio to ours)"
    )
    on_all = f"chunks/s, {len(cores)} threads"
    print(f"{'':<12}{'bytes':>8}{'same':>6}{'written, MB/CPU s':>20}{'read, chunks/CPU s':>20}{on_all:>22}")
    rates = {name: [statistics.median(column) for column in zip(*spent[name], strict=True)] for name in ways}
    size = sum(map(_size, folders["ours"]))
    for name, mine in rates.items():
        share = sum(map(_size, folders[name])) / size
        same = list(map(_bytes_of, folders[name])) == list(map(_bytes_of, folders["ours"]))
        cells = [f"{rate:,.0f} ({rate / our:.2f})" for rate, our in zip(mine, rates["ours"], strict=True)]
        print(
            f"{name:<12}{share:>8.4f}{'yes' if same else 'no':>6}{cells[0]:>20}{cells[1]:>20}{cells[2]:>22}", flush=True
        )


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return CPU seconds of all threads, and elapsed seconds."""
    cpu, clock = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - clock


def _write_ours(folder: Path, values: np.ndarray, layout: ArrayLayout) -> None:
    write_array(folder, _parts(values, layout), layout)


def _write_zarr(folder: Path, values: np.ndarray, layout: ArrayLayout, pipeline: str = PIPELINE) -> None:
    _begin(folder, layout)
    with zarr.config.set({"codec_pipeline.path": pipeline, "array.write_empty_chunks": True}):
        _fill(folder, zarr.open_array(folder, mode="r+"), values, layout)


def _write_zarrs(folder: Path, values: np.ndarray, layout: ArrayLayout) -> None:
    _write_zarr(folder, values, layout, "zarrs.ZarrsCodecPipeline")


def _write_tensorstore(folder: Path, values: np.ndarray, layout: ArrayLayout) -> None:
    _begin(folder, layout)
    _fill(folder, _tensorstore(folder, store_data_equal_to_fill_value=True), values, layout)


def _begin(folder: Path, layout: ArrayLayout) -> None:
    """Create an array with the metadata and codecs of this package, for a library to fill."""
    folder.mkdir()
    (folder / ARRAY_FILE).write_bytes(layout.metadata())


def _fill(folder: Path, target: Any, values: np.ndarray, layout: ArrayLayout) -> None:
    """Write whole shards and flush them to disk, as this package does."""
    for number, part in enumerate(_parts(values, layout)):
        start = number * layout.shard[0]
        target[start : start + len(part)] = part
    for file in _files(folder):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _parts(values: np.ndarray, layout: ArrayLayout) -> list[np.ndarray]:
    return [values[start : start + layout.shard[0]] for start in range(0, len(values), layout.shard[0])]


def _tensorstore(folder: Path, **options: Any) -> Any:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}, **options}
    return tensorstore.open(spec, open=True).result()


def _reader(name: str, folders: list[Path], layout: ArrayLayout, threads: int) -> Read:
    """Read chunks into one array, all at once if the library can."""
    boxes = list(layout.boxes())
    out = np.empty((BATCH, *layout.chunk), layout.dtype)
    if name == "ours":
        files, pool = ShardFiles(), ReadingThreads(threads)
        shards = [str(layout.file(folder, 0)) for folder in folders]

        def some(chosen: list[tuple[int, int]], target: np.ndarray) -> None:
            for (array, position), one in zip(chosen, target, strict=True):
                files.read_chunk(shards[array], layout.chunks, position, one)

        return lambda chosen: [part.result() for part in pool.start(some, len(chosen), chosen, out)]
    if name == "TensorStore":
        opened = [_tensorstore(folder, recheck_cached_data=False, recheck_cached_metadata=False) for folder in folders]

        def stacked(chosen: list[tuple[int, int]]) -> None:
            with tensorstore.Batch() as batch:
                stack = tensorstore.stack(
                    [opened[array][boxes[position]][tensorstore.d[:].translate_to[0]] for array, position in chosen]
                )
                pending = stack.read(batch=batch)
            pending.result()

        return stacked
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline" if name == "zarrs" else PIPELINE}):
        arrays = [zarr.open_array(folder, mode="r") for folder in folders]
    workers = ThreadPoolExecutor(threads)

    def one_by_one(chosen: list[tuple[int, int]]) -> None:
        for one, values in zip(out, workers.map(lambda ref: arrays[ref[0]][boxes[ref[1]]], chosen), strict=False):
            one[...] = values

    return one_by_one


def _samples(data: Path) -> list[tuple[str, list[np.ndarray], ArrayLayout]]:
    """Return arrays to write: images as stored; patients in their source type and as standardised float32."""
    images, patients = BrainMRIReader(), BraTSReader()
    pixels = [images.read_case(case).image for case in list_cases(images, data / "brain-mri")]
    array = np.stack((pixels * -(-LEAST_CHUNKS // len(pixels)))[:IMAGES_PER_SHARD])
    chunk, names = (1, *array.shape[1:]), ("image", "y", "x")
    samples = [("images", [array], ArrayLayout(array.shape, array.dtype, chunk, array.shape, names, IMAGE_COMPRESSION))]
    volumes = [patients.read_case(case).image for case in list_cases(patients, data / "brats")]
    axes = (1, 2, 3)
    floats = [((v - v.mean(axes, keepdims=True)) / v.std(axes, keepdims=True)).astype(np.float32) for v in volumes]
    for kind, several in ((f"patients, {volumes[0].dtype}", volumes), ("patients, float32", floats)):
        samples.append((kind, several, volume_layout(several[0].shape, several[0].dtype)))
    return samples


def _bytes_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(_files(folder))]


def plain_patient(case: Case, target: Path) -> None:
    """Convert a patient in a plain loop: float64 from nibabel, an array per file, zarr's default codec and chunks."""
    group = zarr.open_group(target, mode="w")
    for role, file in case.files.items():
        group[role] = nib.load(file.path).get_fdata()


def plain_images(cases: list[Case], target: Path) -> None:
    """Convert images in a plain loop: decode, convert to grey, resize, save; no crop, check or hash."""
    target.mkdir(parents=True)
    for number, case in enumerate(cases):
        grey = Image.open(case.files["image"].path).convert("L")
        np.save(target / f"{number}.npy", np.asarray(grey.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)))


def alternate(
    plain: Callable[[], object], ours: Callable[[], object], cases: int, work: Path, repeats: int
) -> tuple[Times, Times]:
    """Return CPU seconds per case of both, measured alternately; the first round is a warm-up."""
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
    """Return the peak resident MB of a fresh process that works like a worker."""
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
    """Return the number of cases in `source`, and a folder with copies of them: at least `least` cases."""
    reader: CaseReader = BraTSReader() if least == LEAST_PATIENTS else BrainMRIReader()
    cases = list_cases(reader, source)
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


def list_cases(reader: CaseReader, source: Path) -> list[Case]:
    return inspect_listing(walk(source), reader).cases


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
    parser.add_argument("--arrays", action="store_true", help="compare ways to write and read the store's arrays")
    return parser.parse_args()


if __name__ == "__main__":
    main()
