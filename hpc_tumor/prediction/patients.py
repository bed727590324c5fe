"""Label patients one by one, from their folders of scans to labels in the space of the scans."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.console import Progress
from hpc_tumor.data.brain import BrainStatistics, brain_statistics
from hpc_tumor.data.case import Case, check_names
from hpc_tumor.data.contrast import contrast
from hpc_tumor.data.convert.assumptions import assumptions
from hpc_tumor.data.editions import DEFAULT_EDITION, EDITIONS, Edition, UncertainLabels, edition_of
from hpc_tumor.data.raw.brats import LABEL, assumed_of, open_case, read_intensities, read_labels
from hpc_tumor.data.raw.files.nifti import NiftiFile
from hpc_tumor.data.splits.sketch import sketch
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.prediction.known import COLUMNS, CaseMatcher, is_known, match_columns, name_match_notes
from hpc_tumor.prediction.nifti_out import write_labels, write_volumes
from hpc_tumor.prediction.options import Options
from hpc_tumor.prediction.outputs import output_folder, write_table
from hpc_tumor.prediction.scan_differences import ScanFacts, difference_notes
from hpc_tumor.prediction.trained import Trained
from hpc_tumor.prediction.volume import Segmentation, clean, segment
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.cleaning import histogram
from hpc_tumor.training.scoring.surfaces import case_surfaces
from hpc_tumor.vocabulary import LABELS, MODALITIES, PREDICTIONS, TUMOUR_LABELS, listed

SCORES = "scores.csv"


@dataclass(frozen=True)
class Patient:
    """The scans of one patient.

    Attributes:
        image: `(4, Z, Y, X)` with the axes LPS, in the source's type.
        label: `(Z, Y, X)` 0 to 4, if the folder has a segmentation whose label numbers are known.
        scan: the FLAIR file, whose space is the patient's.
        assumed: assumptions about its files, as in a store; see assumptions.py.
        sketch: `(4, 16, 16, 16)` int8, to find copies of the scans.
        facts: to find scans that differ from the training data.
    """

    id: str
    image: NDArray[Any]
    label: NDArray[np.uint8] | None
    scan: NiftiFile
    brain: BrainStatistics
    assumed: dict[str, Any]
    sketch: NDArray[np.int8]
    facts: ScanFacts
    unscored: str | None = None  # reason why the segmentation is not read
    folder: str = ""  # name of the patient whose folder holds this session, if any


@dataclass
class PatientResults:
    """Predictions: a row per patient, rows of scores, and (case, reason) of unreadable patients."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, object]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scans: list[ScanFacts] = field(default_factory=list)
    assumed: list[dict[str, Any]] = field(default_factory=list)
    overlapping: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> list[dict[str, Any]]:
        """Rows of patients with a segmentation."""
        return [row for row in self.rows if "scores" in row]

    @property
    def scored(self) -> list[dict[str, Any]]:
        """Labelled rows, without patients that the run trained or validated on."""
        return [row for row in self.labelled if not is_known(row)]


def labels_file(case: str) -> str:
    """Return the file name of a patient's labels, as in BraTS submissions."""
    return f"{case}-seg.nii.gz"


def probabilities_file(case: str) -> str:
    """Return the file name of a patient's probabilities: NCR, ED and ET along a fourth axis."""
    return f"{case}-probabilities.nii.gz"


def file_names(cases: Sequence[Case]) -> list[str]:
    """Return the files that a prediction of these patients may write."""
    return [SCORES, *(name(case.id) for case in cases for name in (labels_file, probabilities_file))]


def predict_patients(
    trained: Callable[[], Trained], cases: Sequence[Case], output: Path, options: Options, known: CaseMatcher,
    progress: Progress,
) -> PatientResults:  # fmt: skip
    """Label every readable patient and write the result to the folder `output`.

    Args:
        trained: loads the network; called once the folder is known to be writable.
        known: cases that the run trained and validated on.
        progress: called with slices done for a single patient, else with patients done.

    Raises:
        DataError: no patient could be read.
        UsageError: `output` cannot be written, or holds predictions and may not be overwritten.
    """
    results = PatientResults()
    with output_folder(output, file_names(cases), options.overwrite):
        network = trained()
        if options.clean and network.facts.cleaning is None:
            raise UsageError("--clean: this run has no thresholds. Train with --set clean=true to choose them.")
        for done, (case, patient) in enumerate(_read_ahead(cases, options.labels, network.facts.edition), 1):
            if isinstance(patient, DataError):
                results.failed.append((case.id, str(patient)))
            elif too_long := _too_long(case.id, output, options):
                results.failed.append(
                    (case.id, f"{too_long} is too long for a file name in {output}: rename {case.folder}.")
                )
            else:
                _predict(network, patient, output, options, known, results, progress if len(cases) == 1 else None)
            if len(cases) > 1:
                progress(done, len(cases))
        if not results.rows:
            more = f" The other {len(cases) - 1} patients could not be read either." if len(cases) > 1 else ""
            raise DataError(f"{results.failed[0][1]}{more}")
        if results.scores:
            write_table(output / SCORES, results.scores)
        else:
            (output / SCORES).unlink(missing_ok=True)
    if known.told_by == "content":
        results.notes += name_match_notes(results.rows, [row["case"] for row in results.rows], "scans")
    results.notes += assumptions(results.assumed)
    if results.overlapping:
        results.notes.append(
            f"labels overlap in {listed(results.overlapping)}: scores are of each label separately, as in testing; the"
            " files have the most probable label of each voxel, so scores computed from them differ"
        )
    results.notes += difference_notes(known.cases, results.scans)
    return results


def read_patient(case: Case, labels: str | None = None, usual: Edition = DEFAULT_EDITION) -> Patient:
    """Read the scans of a patient, and its labels if there are any.

    Label numbers are those of the edition `labels`, else of the patient's name, else of `usual`.

    Raises DataError for a missing or unreadable file, different shapes, or values that are not finite.
    """
    check_names(case)
    files = open_case(case, (*MODALITIES, *([LABEL] if LABEL in case.files else [])))
    image = read_intensities([files[role] for role in MODALITIES])
    label, edition, unscored = None, None, None
    if LABEL in files:
        try:
            label, edition = read_labels(files[LABEL], case.id, labels, usual)
        except UncertainLabels as error:
            unscored = str(error)
    brain = brain_statistics(image)
    if not brain.voxels:
        raise DataError(f"{case.folder} holds no brain: all voxels of its scans have the same value.")
    scan, (depth, height, width) = files[MODALITIES[0]], image.shape[1:]
    facts = ScanFacts(case.id, scan.spacing, (depth, height, width), brain.voxels, contrast(image, brain))
    assumed = {
        "case": case.id, "meta": assumed_of(case.id, files, edition, labels), "tolerance": brain.tolerance,
        "label_counts": [] if label is None else [np.bincount(label.ravel(), minlength=TUMOUR_LABELS + 1)],
    }  # fmt: skip
    return Patient(
        case.id, image, label, scan, brain, assumed, sketch(image, brain), facts, unscored,
        str(case.meta.get("patient", "")),
    )  # fmt: skip


def _read_ahead(
    cases: Sequence[Case], labels: str | None, usual: Edition
) -> Iterator[tuple[Case, Patient | DataError]]:
    """Yield each case with its scans, or the error of reading them, read while the case before is predicted."""

    def read(case: Case) -> Patient | DataError:
        try:
            return read_patient(case, labels, usual)
        except DataError as error:
            return error

    with ThreadPoolExecutor(1, thread_name_prefix="patients") as pool:
        pending = pool.submit(read, cases[0])
        for number, case in enumerate(cases):
            patient = pending.result()
            if number + 1 < len(cases):
                pending = pool.submit(read, cases[number + 1])
            yield case, patient


def _predict(
    trained: Trained,
    patient: Patient,
    output: Path,
    options: Options,
    known: CaseMatcher,
    results: PatientResults,
    progress: Progress | None,
) -> None:
    start = time.perf_counter()
    segmentation = segment(
        trained, patient.image, patient.brain, batch_size=options.batch_size,
        keep_probabilities=options.probabilities, progress=progress or (lambda done, total: None),
    )  # fmt: skip
    if trained.facts.cleaning is not None and options.clean is not False:
        segmentation = clean(segmentation, trained.facts.cleaning, float(np.prod(patient.scan.spacing)))
    path = output / labels_file(patient.id)
    write_labels(path, segmentation.labels, patient.scan, _edition(patient.id, options, trained))
    _write_probabilities(output / probabilities_file(patient.id), segmentation, patient.scan)
    volumes = _volumes(segmentation, patient.scan)
    row: dict[str, Any] = {"case": patient.id, "file": path, "slices": segmentation.slices, **volumes}
    row |= match_columns(known.find_patient(patient.id, patient.brain.digest, patient.sketch, patient.folder))
    results.scans.append(patient.facts)
    if patient.label is not None:
        scores = score_case(patient.label, segmentation.bits, patient.scan.spacing)
        results.scores.append({"case": patient.id, **scores, **{name: row[name] for name in COLUMNS}})
        row["scores"] = scores
        if (segmentation.bits != (1 << segmentation.labels.astype(np.uint8)) >> 1).any():
            results.overlapping.append(patient.id)
    if patient.unscored:
        results.notes.append(f"{patient.id} is not scored: {patient.unscored}")
    results.assumed.append(patient.assumed)
    row["seconds"] = time.perf_counter() - start
    results.rows.append(row)


def score_case(
    truth: NDArray[np.uint8], predicted_bits: NDArray[np.uint8], spacing: tuple[float, float, float]
) -> dict[str, object]:
    """Compute status and scores of every label and region of one patient, as in a run's cases.csv.

    Args:
        truth: `(Z, Y, X)` labels 0 background, 1 NCR/NET, 2 ED, 3 ET; a resection cavity, 4, counts as background.
        predicted_bits: `(Z, Y, X)` predicted labels of each voxel: sum of 1 NCR, 2 ED, 4 ET.
        spacing: voxel size along z, y, x in mm.
    """
    codes = np.where(truth < TUMOUR_LABELS, truth, 0) * np.uint8(PREDICTIONS) + predicted_bits
    (row,) = metrics.segmentation_rows(histogram(codes)[None], [""], [len(truth)], case_surfaces(codes, spacing)[None])
    return {name: value for name, value in row.items() if name != "case"}


def _too_long(case: str, output: Path, options: Options) -> str | None:
    """Return an output file name of this patient that is too long for the file system of `output`, if any."""
    names = [labels_file(case), *([probabilities_file(case)] if options.probabilities else [])]
    return next((name for name in names if len(os.fsencode(name)) > os.pathconf(output, "PC_NAME_MAX")), None)


def _edition(case: str, options: Options, trained: Trained) -> Edition:
    """Return the edition of the label numbers to write: as requested, else of the name, else of the training data."""
    if options.labels is not None:
        return EDITIONS[options.labels]
    return edition_of(case).edition or trained.facts.edition


def _write_probabilities(path: Path, segmentation: Segmentation, scan: NiftiFile) -> None:
    if segmentation.probabilities is not None:
        write_volumes(path, list(segmentation.probabilities), scan, f"probabilities of {', '.join(LABELS)}")
    elif os.path.lexists(path):
        path.unlink()  # from an earlier prediction


def _volumes(segmentation: Segmentation, scan: NiftiFile) -> dict[str, float]:
    """Return the volume of each label in ml."""
    voxel = float(np.prod(scan.spacing)) / 1000
    counts = np.bincount(segmentation.labels.ravel(), minlength=len(LABELS) + 1)
    return {f"ml_{name}": float(count * voxel) for name, count in zip(LABELS, counts[1:], strict=True)}
