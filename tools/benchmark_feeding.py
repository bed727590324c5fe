#!/usr/bin/env python3
"""Measure how fast slices reach the training step: from one H5 file per slice, TensorStore, and this package.

    python tools/benchmark_feeding.py [--data DIR] [--networks cnn,unet | all | none] [--rounds N]

DIR contains BraTS patients (default: brats/ in HPC_TUMOR_REAL_DATA, else synthetic ones), which are repeated until
there are 700 slices. All variants read random batches of 32 slices, with warm caches, alternately, on one core; the
figure is slices per CPU-second, the median of the rounds. A training gets the last three rows: on a GPU arrays, which
the GPU normalises; on a CPU tensors that are ready for the network, normalising included, from the store in the first
epoch and from memory in later ones if they fit. Like a training on a CPU, all variants keep freed memory.

Then each network trains a few steps on the store (the classifiers on images), and the share of time that it waits for
data is shown.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from benchmark_machine import copy_rate, describe_machine

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.feed.loader import READ_AHEAD, BatchLoader
from hpc_tumor.data.feed.row_cache import allocate_cache
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store
from hpc_tumor.training.watch.memory import keep_freed_memory

SLICES, BATCH = 700, 32
CPU = torch.device("cpu")
GPU_ROW, CPU_ROW = "on a GPU: arrays", "on a CPU: ready tensors"
Read = Callable[[np.ndarray], None]  # reads the slices of these numbers


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=_real("brats"), help="folder of BraTS patients")
    options.add_argument("--images", type=Path, default=_real("brain-mri"), help="folder of Brain MRI images")
    options.add_argument("--networks", default="all", help="networks that train a few steps: names, all or none")
    options.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement")
    given = options.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="benchmark-feeding-") as folder:
        root = Path(folder)
        store = _brats_store(root, given.data)
        compare(root, store, given.rounds)
        if given.networks != "none":
            torch.set_num_threads(len(os.sched_getaffinity(0)))
            measure_waiting(root, store.path, given.images, given.networks)


def compare(root: Path, store: Store, rounds: int) -> None:
    """Print the rate of every reader, and its ratio to the others."""
    keep_freed_memory()
    torch.set_num_threads(1)  # its threads spin while they wait, which would count as CPU time
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # two threads on the two halves of a core are not two cores
    draw = np.random.default_rng(0)
    refs = np.array([(case, z) for case in range(len(store)) for z in range(store.slices(case))])
    print(f"\n{len(refs)} slices of {len(store)} patients; {store.path.name}: {_size(store.path) / 1e6:.0f} MB")
    for kind, packing in (("gzip", {"compression": "gzip"}), ("plain", {})):
        write_h5(root / kind, store, refs, packing)
        print(f"one H5 file per slice, {kind}: {_size(root / kind) / 1e6:.0f} MB")
    part, kept = (SlicePart(store, refs, CPU) for _ in range(2))
    kept.rows.kept, _ = allocate_cache("host", None, kept.rows.like(), len(kept), CPU)
    kept.rows.fill(lambda: None)
    readers: dict[str, tuple[Read, int, int]] = {  # each with batches in a pass, and passes in a round
        "H5 per slice, gzip: arrays": (lambda chosen: read_h5(root / "gzip", refs[chosen]), 8, 1),
        "H5 per slice, plain: arrays": (lambda chosen: read_h5(root / "plain", refs[chosen]), 20, 2),
        "TensorStore, bare: arrays": (_tensorstore(store, refs), 20, 5),
        GPU_ROW: (lambda chosen: read_store(store, refs[chosen]), 20, 10),
        CPU_ROW: (lambda chosen: read_loader(part, chosen), 20, 5),
        "on a CPU: the same, kept": (lambda chosen: read_loader(kept, chosen), 20, 5),
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, (read, batches, passes) in readers.items():
            orders = [draw.permutation(len(refs))[: batches * BATCH] for _ in range(passes)]
            before = time.process_time()
            for order in orders:
                read(order)
            rates[name].append(batches * BATCH * passes / (time.process_time() - before))
    os.sched_setaffinity(0, cores)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    columns = list(readers)[:3]
    heads = ("median", "lowest", "highest")
    print(f"\n{'slices per CPU-second':<28}" + "".join(f"{head:>8}" for head in heads) + "   × gzip  × plain   × TS")
    for name, values in rates.items():
        ratios = [middle[name] / middle[column] for column in columns]
        print(f"{name:<28}{middle[name]:>8.0f}{min(values):>8.0f}{max(values):>8.0f}"
              f"{ratios[0]:>9.1f}{ratios[1]:>9.1f}{ratios[2]:>7.2f}")  # fmt: skip
    beyond = 1e6 * (1 / middle[CPU_ROW] - 1 / middle[GPU_ROW])
    print(f"normalising takes {beyond:.0f} µs a slice; one core copies {copy_rate() / 1e9:.1f} GB/s")


def write_h5(folder: Path, store: Store, refs: np.ndarray, packing: dict[str, Any]) -> None:
    """Write one file per slice as in the Kaggle edition: float64 `(240, 240, 4)`, standardised, and three masks."""
    folder.mkdir()
    for case in range(len(store)):
        image, label = store.read_volume(case).result()
        for z in refs[refs[:, 0] == case, 1].tolist():
            values = image[:, z].astype(np.float64).transpose(1, 2, 0)
            values = (values - values.mean((0, 1))) / (values.std((0, 1)) + 1e-9)
            masks = np.stack([label[z] == value for value in (1, 2, 3)], -1).astype(np.uint8)
            with h5py.File(folder / f"volume_{case}_slice_{z}.h5", "w") as file:
                file.create_dataset("image", data=values, **packing)
                file.create_dataset("mask", data=masks, **packing)


def read_h5(folder: Path, chosen: np.ndarray) -> None:
    """Open and read one file per slice, as the course project does, and stack batches."""
    for start in range(0, len(chosen), BATCH):
        images, masks = [], []
        for case, z in chosen[start : start + BATCH].tolist():
            with h5py.File(folder / f"volume_{case}_slice_{z}.h5", "r") as file:
                images.append(file["image"][()])
                masks.append(file["mask"][()])
        np.stack(images), np.stack(masks)


def _tensorstore(store: Store, refs: np.ndarray) -> Read:
    """Read batches with TensorStore only, read ahead as far as ours."""
    import tensorstore as ts

    def opened(place: str) -> Any:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.path / place}/"},
                "recheck_cached_data": False, "recheck_cached_metadata": False}  # fmt: skip
        return ts.open(spec, open=True, read=True, context=context).result()

    context = ts.Context({"cache_pool": {"total_bytes_limit": 100_000_000}})  # for the shards' indexes
    images = [opened(f"cases/{name}/0") for name in store.case_ids]
    labels = [opened(f"cases/{name}/labels/seg/0") for name in store.case_ids]

    def read(chosen: np.ndarray) -> None:
        waiting: deque[tuple[Any, Any]] = deque()
        for start in range(0, len(chosen), BATCH):
            places = refs[chosen[start : start + BATCH]].tolist()
            with ts.Batch() as batch:
                waiting.append((ts.stack([images[case][:, z] for case, z in places]).read(batch=batch),
                                ts.stack([labels[case][z] for case, z in places]).read(batch=batch)))  # fmt: skip
            if len(waiting) == READ_AHEAD:
                for future in waiting.popleft():
                    future.result()
        for pair in waiting:
            for future in pair:
                future.result()

    return read


def read_store(store: Store, chosen: np.ndarray) -> None:
    """Read batches as arrays, ahead, into a ring of buffers."""
    buffers = deque(store.empty_slices(BATCH) for _ in range(READ_AHEAD))
    waiting: deque[Any] = deque()
    for start in range(0, len(chosen), BATCH):
        if len(waiting) == READ_AHEAD:
            buffers.append(waiting.popleft().result())
        waiting.append(store.read_slices(chosen[start : start + BATCH], buffers.popleft()))
    for pending in waiting:
        pending.result()


def read_loader(part: SlicePart, chosen: np.ndarray) -> None:
    """Read normalised float32 tensors and labels, as the training step gets them on a CPU."""
    read = sum(len(batch.images) for batch in BatchLoader(part, BATCH).batches(chosen, limit=len(chosen) // BATCH))
    assert read == len(chosen)


def measure_waiting(root: Path, slices: Path, images: Path | None, networks: str) -> None:
    """Train each network for a few steps and print the share of time that it waits for data."""
    from hpc_tumor.config import Experiment
    from hpc_tumor.models import MODELS
    from hpc_tumor.run_dir import RunDir
    from hpc_tumor.settings import resolve
    from hpc_tumor.training.distributed import Distributed
    from hpc_tumor.training.loop import train

    source = images or root / "raw-images"
    if images is None:
        make_phantom(source, "brain-mri", 400, seed=0)
    prepare_dataset(inspect_source(source).reader, source, root / "images.zarr")
    stores = {"segmentation": slices, "classification": root / "images.zarr"}
    names = list(MODELS) if networks == "all" else networks.split(",")
    print(f"\n{'network':<16}{'batch':>6}{'samples/s':>11}{'waiting':>9}   (training on the CPU)")
    for name in names:
        task = MODELS[name].task
        steps = 4 if task == "segmentation" else 8
        given = {"model": {"name": name}, "data": {"store": str(stores[task]), "keep": "none"}, "limit_batches": steps}
        experiment: Experiment = resolve({**given, "recipe": {"epochs": 1}}, {}, "benchmark", lambda setting: "--set")
        run = RunDir.create(root / "runs", experiment)
        train(experiment, run, Distributed())
        (line,) = [line for line in run.read_metrics() if line["part"] == "train"]
        batch = experiment.recipe.batch_size
        print(f"{name:<16}{batch:>6}{line['rate']:>11.1f}{100 * line['data_wait']:>8.2f}%", flush=True)


def _brats_store(root: Path, data: Path | None) -> Store:
    source = root / "raw"
    source.mkdir()
    if data is None:
        make_phantom(root / "phantom", "brats", 2, seed=0)
        data = root / "phantom"
    patients = sorted(folder for folder in data.iterdir() if folder.is_dir())
    for copy in range(-(-SLICES // (155 * len(patients)))):
        for patient in patients:
            folder = source / f"{copy:02}_{patient.name}"
            folder.mkdir()
            for file in patient.iterdir():
                shutil.copy(file, folder / file.name)
    prepare_dataset(inspect_source(source).reader, source, root / "brats.zarr")
    return Store.open(root / "brats.zarr", threads=1)


def _real(kind: str) -> Path | None:
    root = os.environ.get("HPC_TUMOR_REAL_DATA")
    return Path(root) / kind if root else None


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
