#!/usr/bin/env python3
"""Measure the start of a run on a store of many patients: open, split, order the slices of the first epoch.

    python tools/benchmark_growth.py [--patients N]...

The store has the index of N patients (155 slices each) and no image data, so none of it can have been read.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from benchmark_machine import describe_machine

from hpc_tumor.data.feed.loader import epoch_order
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.splits.splits import make_split, middle_pairs
from hpc_tumor.data.store.nodes import write_column, write_group
from hpc_tumor.data.store.store import SCHEMAS, Store
from hpc_tumor.vocabulary import LABEL_NAMES, MODALITIES

DEPTH = 155


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--patients", type=int, action="append", help="size of a store; default: 2,000 and 100,000")
    patients = options.parse_args().patients or [2000, 100_000]
    print(describe_machine())
    print(f"\n{'patients':>9}{'index':>10}{'open':>9}{'split':>9}{'slices':>9}{'order':>9}{'all':>9}")
    for n in patients:
        with tempfile.TemporaryDirectory(prefix="benchmark-growth-") as folder:
            write_index(Path(folder), n)
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            steps = time_start(Path(folder))
        print(f"{n:>9,}{size / 1e6:>7.1f} MB" + "".join(f"{seconds:>7.2f} s" for seconds in [*steps, sum(steps)]))


def write_index(store: Path, n: int) -> None:
    """Write the index of a store of `n` patients."""
    draw = np.random.default_rng(0)
    about = {"schema": SCHEMAS["segmentation"], "dataset": "brats", "task": "segmentation", "options": {},
             "complete": True, "fingerprint": "made up"}  # fmt: skip
    write_group(store, {"hpc_tumor": about})
    names = [f"BraTS2021_{i:06}" for i in range(n)]
    write_group(store / "index", {
        "case_ids": names,
        "dtypes": ["int16"] * n,
        "scans": [f"{value:064x}" for value in draw.integers(0, 2**62, n).tolist()],
        "clinical": [{"grade": "HGG" if i % 4 else "LGG"} for i in range(n)],
        "channels": MODALITIES,
        "labels": LABEL_NAMES,
        "editions": ["brats-2017-2021"] * n,
    })  # fmt: skip
    write_column(store / "index", "shape", np.tile(np.array([[DEPTH, 240, 240]], np.int32), (n, 1)))
    write_column(store / "index", "spacing", np.ones((n, 3)))
    for name in ("background", "tolerance"):
        write_column(store / "index", name, np.zeros((n, 4)))
    write_column(store / "index", "statistics", draw.normal(500, 200, (n, 4, 2)))
    write_column(store / "index", "group", np.arange(n, dtype=np.int32))
    counts = np.zeros((n, DEPTH, 4), np.int32)
    counts[:, 40:110] = draw.integers(0, 4000, (min(n, 500), 70, 4))[np.arange(n) % 500]
    write_column(store / "index", "label_counts", counts)


def time_start(folder: Path) -> list[float]:
    """Measure the seconds to open the store, split it, choose the training slices, and order them."""
    times = [time.perf_counter()]
    store = Store.open(folder)
    times.append(time.perf_counter())
    split = make_split(store, "by-patient", 0)
    times.append(time.perf_counter())
    part = SlicePart(store, middle_pairs(store, split.train, 0.5), torch.device("cpu"))
    times.append(time.perf_counter())
    epoch_order(len(part), 0, 0)
    times.append(time.perf_counter())
    return np.diff(times).tolist()


if __name__ == "__main__":
    main()
