"""Measure the final test of a patient without the network: packing slices, and distances between surfaces.

    python tools/benchmark_scoring.py [--data FOLDER] [--network unet] [--filters 32] [--rounds 3] [--no-monai]

The prediction for each patient of FOLDER (default: the brats samples in HPC_TUMOR_REAL_DATA, else synthetic patients of
240 × 240 × 155 voxels) is the true tumour, moved by a voxel or two, with specks around it. An untrained network would
predict noise; a patient of noise everywhere is timed as the worst case. The network is timed with random weights, as
`evaluate` runs it.

Surfaces: HD95 and NSD of all five structures. Compared, in the same rounds: the unchanged surface-distance package,
and MONAI's HD95 and surface Dice, on whole volumes. Ratios are of medians over rounds and patients, with the
lowest and highest single ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import surface_distance
import torch
from benchmark_feeding import _real
from benchmark_machine import describe_machine
from benchmark_networks import experiment_of
from benchmark_workers import cores

from hpc_tumor.config import HardwareSettings
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.splits.splits import middle_pairs
from hpc_tumor.data.store.store import Store
from hpc_tumor.models import MODELS, build_model
from hpc_tumor.system.worker_processes import WorkerProcesses
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.losses import build_loss
from hpc_tumor.training.parts import EVALUATION_BATCH
from hpc_tumor.training.scoring.cases import Case, count_candidates
from hpc_tumor.training.scoring.cases import measure as measure_case
from hpc_tumor.training.scoring.evaluate import Forward, ScoringSpec, evaluate
from hpc_tumor.training.scoring.surfaces import TOLERANCE, case_surfaces
from hpc_tumor.training.scoring.testing import choose_cleaning
from hpc_tumor.training.scoring.volumes import Volumes
from hpc_tumor.training.tuning.formats import choose_formats
from hpc_tumor.vocabulary import MEMBERS, PREDICTIONS

CPU = torch.device("cpu")
BITS = np.array([0, 1, 2, 4], dtype=np.uint8)  # of one predicted label
CASES = 16  # measured in one process and in several
SPECKS = 30  # around a tumour, of eight voxels each
Times = dict[str, list[float]]


def main() -> None:
    """Time each part, and print seconds, shares and ratios."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=_real("brats"), help="BraTS patients; default: synthetic ones")
    options.add_argument("--network", default="unet", choices=[n for n in MODELS if MODELS[n].task == "segmentation"])
    options.add_argument("--filters", type=int, help="default: the published number")
    options.add_argument("--patients", type=int, default=2, help="at most")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--no-monai", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(cores())
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="benchmark-scoring-") as folder:
        store = store_of(Path(folder), given)
        times = measure(store, given)
    report(times, given)


def store_of(root: Path, given: argparse.Namespace) -> Store:
    """Convert the given patients, or synthetic ones, to a store."""
    if given.data is None:
        make_phantom(root / "phantom", "brats", given.patients, seed=0)
    source = given.data or root / "phantom"
    prepare_dataset(inspect_source(source).reader, source, root / "brats.zarr")
    return Store.open(root / "brats.zarr")


def measure(store: Store, given: argparse.Namespace) -> Times:
    """Return the seconds of each part, a value for each patient and round."""
    times: Times = {}
    for case in range(min(given.patients, len(store.case_ids))):
        part = SlicePart(store, middle_pairs(store, np.array([case]), 1.0), CPU)
        truth = store.read_volume(case).result()[1]
        codes = truth * np.uint8(PREDICTIONS) + BITS[predicted_like(truth)]
        network = network_of(store, part, given)
        for _ in range(given.rounds):
            for name, work in ways(part, codes, network, given):
                began = time.perf_counter()
                found = work()
                times.setdefault(name, []).append(time.perf_counter() - began)
                if name == "package" and not np.array_equal(found, case_surfaces(codes, store.spacing(case))):
                    raise SystemExit("the package itself gives other distances on the whole volume")
        noise = truth * np.uint8(PREDICTIONS) + np.random.default_rng(0).integers(0, 8, truth.shape, np.uint8)
        began = time.perf_counter()
        case_surfaces(noise, store.spacing(case))
        times.setdefault("noise", []).append(time.perf_counter() - began)
    return times


def ways(
    part: SlicePart, codes: np.ndarray, network: Callable[[], Any], given: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Return the functions to time by name, in order."""
    spacing = part.store.spacing(int(part.cases[0]))
    yield "network", network
    yield "packing", lambda: packed(part, codes).codes()
    yield "surfaces", lambda: case_surfaces(codes, spacing)
    case = packed(part, codes)
    yield "cleaning", lambda: choose_cleaning(count_candidates(case)[1][None])
    yield "one process", lambda: measured(case, 0)
    yield "processes", lambda: measured(case, cores())
    yield "package", lambda: by_the_package(codes, spacing)
    if not given.no_monai:
        yield "monai", lambda: by_monai(codes, spacing)


def predicted_like(truth: np.ndarray) -> np.ndarray:
    """Return labels as a trained network might predict them."""
    draw = np.random.default_rng(0)
    predicted = np.roll(truth, (1, 2, -1), (0, 1, 2))
    for place in draw.integers(0, np.array(truth.shape) - 2, (SPECKS, 3)).tolist():
        predicted[tuple(slice(start, start + 2) for start in place)] = draw.integers(1, 4)
    return predicted


def network_of(store: Store, part: SlicePart, given: argparse.Namespace) -> Callable[[], Any]:
    """Run the network over all slices of a patient, scored as during training."""
    experiment = experiment_of(given.network, store.path, model={"filters": given.filters} if given.filters else {})
    side = max(store.slice_shape)
    network = build_model(given.network, image_size=side, filters=experiment.model.filters)
    network = network.to(memory_format=torch.channels_last)
    loss = build_loss("segmentation", experiment.loss, weights=None, focal_gamma=experiment.recipe.focal_gamma)
    formats = choose_formats(HardwareSettings(channels_last=True), MODELS[given.network].kernels, Distributed())
    forward = Forward(formats.precision, MODELS[given.network].in_channels, formats.memory_format, "segmentation")
    return lambda: evaluate(network, BatchLoader(part, EVALUATION_BATCH), ScoringSpec(forward, loss), Distributed())


def measured(case: Case, processes: int) -> None:
    """Measure many cases as the final test does: with this process alone, or with others, which are started first."""
    with WorkerProcesses(processes) as workers:
        for _ in range(CASES):
            workers.call(measure_case, case)
        while workers.pending:
            workers.results(1.0)


def packed(part: SlicePart, codes: np.ndarray) -> Case:
    """Pack the slices of a patient as the final test does."""
    cases: list[Case] = []
    volumes = Volumes(part, cases.append)
    for start in range(0, len(codes), EVALUATION_BATCH):
        some = codes[start : start + EVALUATION_BATCH]
        volumes.add(np.arange(start, start + len(some)), torch.from_numpy(some))
    volumes.share(Distributed())
    return cases[0]


def masks(codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return the true and predicted voxels of each structure in the whole volume."""
    truth, bits = codes // PREDICTIONS, codes % PREDICTIONS
    for members in MEMBERS.values():
        yield np.isin(truth, members), (bits & sum(1 << (label - 1) for label in members)) > 0


def by_the_package(codes: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Return HD95 and NSD, `(structures, 2)`, of a case in which no structure is empty on one side only."""
    found = np.tile([0.0, 1.0], (len(MEMBERS), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row, (truth, predicted) in enumerate(masks(codes)):
            if truth.any() and predicted.any():
                distances = surface_distance.compute_surface_distances(truth, predicted, spacing)
                nsd = surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE)
                found[row] = surface_distance.compute_robust_hausdorff(distances, 95), nsd
    return found


def by_monai(codes: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Compute the same two scores with MONAI."""
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    options = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for pair in masks(codes):
            truth, predicted = (torch.from_numpy(mask[None, None]).float() for mask in pair)
            compute_hausdorff_distance(predicted, truth, percentile=95, **options)
            compute_surface_dice(predicted, truth, [TOLERANCE], use_subvoxels=True, **options)


def report(times: Times, given: argparse.Namespace) -> None:
    """Print seconds per patient, shares of its final test, and ratios to the other packages."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    whole = medians["network"] + medians["packing"] + medians["surfaces"]
    said = {
        "network": f"{given.network}, all slices, and counts of voxels",
        "packing": "slices packed, shared, unpacked to a volume", "surfaces": "HD95 and NSD of five structures",
        "cleaning": "thresholds tried, a validation patient; where scoring.clean asks for it",
        "one process": f"{CASES} patients measured here, while a GPU would wait",
        "processes": f"the same in {cores()} processes beside it, their start included",
        "noise": "surfaces where the network predicts noise everywhere",
        "package": "surface-distance as it is, whole volumes", "monai": "MONAI, whole volumes",
    }  # fmt: skip
    print(f"\nseconds a patient, median of {len(times['network'])} (range)\n")
    for name, text in said.items():
        if name in times:
            share = f"{medians[name] / whole:>7.1%}" if name in ("network", "packing", "surfaces") else f"{'':>7}"
            low, high = min(times[name]), max(times[name])
            print(f"{name:<12}{medians[name]:>9.3f} ({low:.3f}–{high:.3f}){share}   {text}")
    print()
    for name in ("package", "monai"):
        if name in times:
            singles = [a / b for a, b in zip(times[name], times["surfaces"], strict=True)]
            ratio = medians[name] / medians["surfaces"]
            print(f"{name:<10}{ratio:>8.1f} × the seconds of surfaces here ({min(singles):.1f}–{max(singles):.1f})")


if __name__ == "__main__":
    main()
