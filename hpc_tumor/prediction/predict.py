"""One prediction: what the input holds, whether it is what the run was trained for, and what comes of it."""

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
from hpc_tumor.data.raw.leftovers import Leftovers, find_leftovers, no_cases_error, require_cases
from hpc_tumor.errors import DataError, HpcTumorError, UsageError
from hpc_tumor.prediction.options import Options
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.vocabulary import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hpc_tumor.prediction.known import Known
    from hpc_tumor.prediction.trained import Facts, Trained

_VOLUMES = (".nii", ".nii.gz")
_IMAGES_WANTED = f"images ({', '.join(IMAGE_SUFFIXES)})"
Bar = Callable[[str, str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Prediction:
    """Outcome of a prediction.

    Attributes:
        facts: of the network.
        rows: one per patient or image.
        failed: (case or path, reason) of those that could not be read.
        labelled: images in the folder of a class, or patients with a segmentation.
        scored: those of them that the run neither trained nor validated on.
        accuracy: over the `scored` images; None where there are none.
        told_by: by what the run knows its cases: content, ids, or None: it does not.
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
    """Predict what lies at `source` with the weights that `run` was scored with, and write it to the folder `output`.

    Args:
        source: the folder of a patient or of many; an image, or a folder with images at any depth.
        bar: makes a progress from a label and a unit.

    Raises:
        UsageError: the run has no weights; wrong options; `output` cannot be written or holds predictions.
        DataError: the source is not there, holds nothing of what the run was trained for, or nothing can be read.
    """
    experiment, begun = run.experiment(), time.perf_counter()
    if not run.scored_weights().is_file():
        from hpc_tumor.prediction.trained import no_weights

        raise no_weights(run)

    @cache
    def trained() -> Trained:
        from hpc_tumor.prediction.trained import load_trained

        return load_trained(run, options.device, options.precision, options.flips)

    from hpc_tumor.prediction.known import load_known

    kind = f"{run.name} ({experiment.model.name})"
    listing = _list(source, kind, experiment.task)
    work = _segment if experiment.task == "segmentation" else _classify
    known = load_known(run)
    with _memory_suffices():
        fields = work(kind, listing, output, options, known, trained, bar)
    network = trained()
    said = [known.note] if known.note else []
    notes = [*network.facts.notes, *said, *fields.pop("notes"), *_differences(run)]
    fields |= {"notes": notes, "told_by": known.told_by}
    seconds = time.perf_counter() - begun
    return Prediction(network.facts, network.device.type, network.forward.precision.name, output, seconds, **fields)


def _segment(
    kind: str, listing: Listing, output: Path, options: Options, known: Known, trained: Callable[[], Trained], bar: Bar
) -> dict[str, Any]:
    from hpc_tumor.prediction.patients import predict_patients

    found = all_patients(listing)
    if not found.cases and _images(listing):
        raise DataError(f"{kind} labels patients, but {_name(listing)} holds images: name a run of a classifier.")
    cases = require_cases(listing, found, WANTED).cases
    if output.resolve().is_relative_to(listing.source.resolve()):
        raise UsageError(
            f"--output {output} lies in {listing.source}: the labels written there would be taken for those of its"
            " patients. Name a folder outside."
        )
    with bar("predicting", "slices" if len(cases) == 1 else "patients") as progress:
        results = predict_patients(trained, cases, output, options, known, progress)
    rest = find_leftovers(listing, found.taken, "segmentation")
    return {
        "rows": results.rows, "failed": sorted([*results.failed, *found.failed, *rest.refused]),
        "notes": [*results.notes, *_not_taken(rest)], "labelled": len(results.labelled),
        "scored": len(results.scored),
    }  # fmt: skip


def _classify(
    kind: str, listing: Listing, output: Path, options: Options, known: Known, trained: Callable[[], Trained], bar: Bar
) -> dict[str, Any]:
    from hpc_tumor.prediction.images import predict_images

    options.check_images()
    files = _images(listing)
    if not files:
        if any(file.relative.lower().endswith(_VOLUMES) for file in listing.files):
            raise DataError(f"{kind} classifies images, but {_name(listing)} holds volumes: name a run of a U-Net.")
        raise no_cases_error(listing, _IMAGES_WANTED)
    with bar("predicting", "images") as progress:
        results = predict_images(trained, files, output, options, known, progress)
    rest = find_leftovers(listing, {file.relative for file in files}, "classification")
    return {
        "rows": results.rows, "failed": [*results.failed, *rest.refused],
        "notes": [*results.notes, *_not_taken(rest)],
        "accuracy": results.accuracy, "labelled": len(results.labelled), "scored": len(results.scored),
    }  # fmt: skip


def _not_taken(rest: Leftovers) -> list[str]:
    """Lines on files beside the cases that look like data."""
    return [f"not used: {note}" for note in rest.notes]


def _differences(run: RunDir) -> list[str]:
    """Notes on how the data trained on differs from what is predicted here."""
    if (read_json(run.result) or {}).get("dataset") != "brats-h5":
        return []
    return [
        f"{run.name} was trained on brats-h5, whose slices were standardised one by one; here a patient is standardised"
        " as a whole, so its labels may be worse than the run's scores say, and patients that it trained on are known"
        " by name alone"
    ]


def _list(source: Path, kind: str, task: str) -> Listing:
    """List a folder; a single file counts as a folder with it alone."""
    if not source.is_file():
        return walk(source)
    found = source.stat()
    if source.name.lower().endswith(_VOLUMES):
        shown = printable(str(source))
        if task == "classification":
            raise DataError(f"{kind} classifies images, but {shown} is a volume: name a run of a U-Net.")
        raise DataError(f"{shown} is one scan: name the folder of the patient, with all four of them.")
    return Listing(source.parent, [SourceFile(source, source.name, found.st_size, found.st_mtime_ns)])


def _images(listing: Listing) -> list[SourceFile]:
    return [file for file in listing.entries if file.suffix in IMAGE_SUFFIXES]


def _name(listing: Listing) -> str:
    return printable(str(listing.source))


@contextmanager
def _memory_suffices() -> Iterator[None]:
    from hpc_tumor.training.watch.memory import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise HpcTumorError("the memory does not suffice: try a smaller --batch-size, or --device cpu.") from error
