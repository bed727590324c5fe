"""Predict with a run: list the input, check that it suits the run, and collect results and notes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_tumor.console import Progress
from hpc_tumor.data.case import Listing, SourceFile, walk
from hpc_tumor.data.raw.brain_mri import IMAGE_SUFFIXES
from hpc_tumor.data.raw.brats import WANTED, all_patients
from hpc_tumor.data.raw.cheng import WANTED as CHENG
from hpc_tumor.data.raw.cheng import is_folds, is_slice
from hpc_tumor.data.raw.leftovers import find_leftovers, no_cases_error, require_cases
from hpc_tumor.errors import DataError, HpcTumorError, UsageError
from hpc_tumor.prediction.options import Options
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.vocabulary import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hpc_tumor.prediction.known import CaseMatcher
    from hpc_tumor.prediction.trained import Facts, Trained

_VOLUMES = (".nii", ".nii.gz")
_EXPECTED_IMAGES = f"images ({', '.join(IMAGE_SUFFIXES)}) or {CHENG}"
Bar = Callable[[str, str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Prediction:
    """Outcome of a prediction.

    Attributes:
        facts: of the network.
        rows: one per patient or image.
        failed: (case or path, reason) of unreadable ones.
        labelled: number of images in the folder of a class, or of patients with a segmentation.
        scored: number of those that the run neither trained nor validated on.
        accuracy: of the scored images; None without any.
        told_by: key by which the run recognises its cases: content, ids, or None.
    """

    facts: Facts
    device: str
    precision: str
    output: Path
    seconds: float
    rows: list[dict[str, Any]]
    failed: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    accuracy: float | None = None
    labelled: int = 0
    scored: int = 0
    told_by: str | None = None


def predict(run: RunDir, source: Path, output: Path, options: Options, bar: Bar) -> Prediction:
    """Predict the cases at `source` with the scored weights of `run`, and write the results to the folder `output`.

    Args:
        source: folder of one or more patients, an image, or a folder with images at any depth.
        bar: creates a progress bar from a label and a unit.

    Raises:
        UsageError: the run has no weights, options are wrong, or `output` cannot be written or holds predictions.
        DataError: the source is missing, holds no input for this run, or cannot be read.
    """
    experiment, start = run.experiment(), time.perf_counter()
    if not run.scored_weights().is_file():
        from hpc_tumor.prediction.trained import missing_weights_error

        raise missing_weights_error(run)

    @cache
    def trained() -> Trained:
        from hpc_tumor.prediction.trained import load_trained

        return load_trained(run, options.device, options.precision, options.flips)

    from hpc_tumor.prediction.known import load_matcher

    kind = f"{run.name} ({experiment.model.name})"
    listing = _list(source, kind, experiment.task)
    work = _segment if experiment.task == "segmentation" else _classify
    known = load_matcher(run)
    with _explain_memory_errors():
        fields = work(kind, listing, output, options, known, trained, bar)
    network = trained()
    record_notes = [known.note] if known.note else []
    notes = [*network.facts.notes, *record_notes, *fields.pop("notes"), *_differences(run)]
    fields |= {"notes": notes, "told_by": known.told_by}
    seconds = time.perf_counter() - start
    return Prediction(network.facts, network.device.type, network.forward.precision.name, output, seconds, **fields)


def _segment(
    kind: str,
    listing: Listing,
    output: Path,
    options: Options,
    known: CaseMatcher,
    trained: Callable[[], Trained],
    bar: Bar,
) -> dict[str, Any]:
    from hpc_tumor.prediction.patients import predict_patients

    patients = all_patients(listing)
    if not patients.cases and _images(listing):
        raise DataError(f"{kind} labels patients, but {_name(listing)} holds images: choose a run of a classifier.")
    cases = require_cases(listing, patients, WANTED).cases
    if output.resolve().is_relative_to(listing.source.resolve()):
        raise UsageError(
            f"--output {output} is inside {listing.source}: labels written there would be mistaken for those of its"
            " patients. Choose a folder outside."
        )
    with bar("predicting", "slices" if len(cases) == 1 else "patients") as progress:
        results = predict_patients(trained, cases, output, options, known, progress)
    rest = find_leftovers(listing, patients.taken, "segmentation")
    return {
        "rows": results.rows, "failed": sorted([*results.failed, *patients.failed, *rest.refused]),
        "notes": [*results.notes, *(f"not used: {note}" for note in rest.notes)], "labelled": len(results.labelled),
        "scored": len(results.scored),
    }  # fmt: skip


def _classify(
    kind: str,
    listing: Listing,
    output: Path,
    options: Options,
    known: CaseMatcher,
    trained: Callable[[], Trained],
    bar: Bar,
) -> dict[str, Any]:
    from hpc_tumor.prediction.images import predict_images

    options.check_images()
    files = _images(listing)
    if not files:
        if any(file.relative.lower().endswith(_VOLUMES) for file in listing.files):
            raise DataError(f"{kind} classifies images, but {_name(listing)} holds volumes: choose a run of a U-Net.")
        raise no_cases_error(listing, _EXPECTED_IMAGES)
    with bar("predicting", "images") as progress:
        results = predict_images(trained, files, output, options, known, progress)
    folds = [file for file in listing.entries if is_folds(file)]
    rest = find_leftovers(listing, {file.relative for file in (*files, *folds)}, "classification")
    return {
        "rows": results.rows, "failed": [*results.failed, *rest.refused],
        "notes": [*results.notes, *(f"not used: {note}" for note in rest.notes)],
        "accuracy": results.accuracy, "labelled": len(results.labelled), "scored": len(results.scored),
    }  # fmt: skip


def _differences(run: RunDir) -> list[str]:
    """Return notes on differences between the training data and the data predicted here."""
    if (read_json(run.result) or {}).get("dataset") != "brats-h5":
        return []
    return [
        f"{run.name} was trained on brats-h5, whose slices are standardised individually; here each patient is"
        " standardised as a whole, so labels may be worse than the run's scores suggest, and patients that it trained"
        " on are recognised only by name"
    ]


def _list(source: Path, kind: str, task: str) -> Listing:
    """List a folder, or a single file as a folder with only that file."""
    if not source.is_file():
        return walk(source)
    status = source.stat()
    if source.name.lower().endswith(_VOLUMES):
        shown = printable(str(source))
        if task == "classification":
            raise DataError(f"{kind} classifies images, but {shown} is a volume: choose a run of a U-Net.")
        raise DataError(f"{shown} is a single scan: give the patient's folder with all four scans.")
    return Listing(source.parent, [SourceFile(source, source.name, status.st_size, status.st_mtime_ns)])


def _images(listing: Listing) -> list[SourceFile]:
    return [file for file in listing.entries if file.suffix in IMAGE_SUFFIXES or is_slice(file)]


def _name(listing: Listing) -> str:
    return printable(str(listing.source))


@contextmanager
def _explain_memory_errors() -> Iterator[None]:
    from hpc_tumor.training.watch.memory import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise HpcTumorError("out of memory: try a smaller --batch-size, or --device cpu.") from error
