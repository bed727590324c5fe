"""Stores that are damaged or a stranger's: refused in one line that names them, or read as what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import fuzzing_store
import numpy as np
import pytest
from bounded import Watch, run
from earlier_stores import make_schema_1
from raw_samples import write_patients, write_pictures

from hpc_tumor.cli.views.patients import patient_rows
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.store.store import Store


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
        for name in ("classes", "paths", "label", "part", "identical", "group", "sources", "heads", "thumbnails"):
            all_of[name] = getattr(store, name)
        all_of["patients"] = [(row["patient"] or "", row["slice"] or 0) for row in patient_rows(store)]
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
    """Return True if types and shapes of arrays are those of a valid store."""
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
    for number in range(count):
        shutil.copytree(folder / "good.zarr", folder / "s.zarr")
        if images and number % 2:  # also one that is brought up to date
            make_schema_1(folder / "s.zarr")
        files = sorted((folder / "s.zarr").rglob("zarr.json"))
        file = files[random.integers(len(files))]
        name, mutant = fuzzing_store.json_file(random, file.read_bytes())
        file.write_bytes(mutant)
        watch.read(
            f"{file.relative_to(folder)}: {name}",
            lambda: prepare_dataset(reader, source, folder / "s.zarr", workers=1),
            names=str(folder),
        )
        shutil.rmtree(folder / "s.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("images", [False, True], ids=["volumes", "images"])
def test_conversions_that_go_on(tmp_path: Path, images: bool) -> None:
    run(convert_again, tmp_path, images, 9, 60, least=60)


@pytest.mark.slow
@pytest.mark.parametrize("images", [False, True], ids=["volumes", "images"])
def test_stores(tmp_path: Path, images: bool) -> None:
    run(mutate_store, tmp_path, images, 8, 400, least=400)


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        (mutate_store, (False, 108, 2000)), (mutate_store, (True, 108, 2000)), (convert_again, (False, 109, 200)),
        (convert_again, (True, 109, 200)),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)  # fmt: skip
def test_many_more_stores(tmp_path: Path, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    run(task, tmp_path, *arguments, least=arguments[-1])
