"""Classify images, prepared as by prepare-data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_tumor.console import Progress
from hpc_tumor.data.case import Case, SourceFile
from hpc_tumor.data.feed.samples import unit_images
from hpc_tumor.data.feed.transfer import on_device
from hpc_tumor.data.patients.recognise import recognise
from hpc_tumor.data.raw.brain_mri import BrainMRIReader, class_of
from hpc_tumor.data.raw.cheng import ChengReader, is_slice
from hpc_tumor.data.splits.near_duplicates import SIDE
from hpc_tumor.errors import DataError
from hpc_tumor.prediction.known import ID, CaseMatcher, is_known, match_columns, name_match_notes
from hpc_tumor.prediction.options import Options
from hpc_tumor.prediction.outputs import output_folder, write_table
from hpc_tumor.prediction.trained import Trained
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.vocabulary import listed, printable

PREDICTIONS = "predictions.csv"
_MIN_CONTRAST = 4  # grey levels of a thumbnail
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image as network input, and the keys by which it is recognised.

    Attributes:
        pixels: `(256, 256)` uint8: grey, cropped to the head and resized as in a store.
        digest: SHA-256 of its decoded pixels, in hexadecimal.
        thumbnail: `(32, 32)` uint8 of the whole picture; `head` the same of the head.
        label: class that the file names, or the nearest folder around it; None if neither does.
        patient: that the file names; None if it does not.
    """

    pixels: Pixels
    digest: str
    thumbnail: Pixels
    head: Pixels
    label: str | None
    patient: str | None


@dataclass
class ImageResults:
    """Predictions: a row per image, and (path, reason) of unreadable ones."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> list[dict[str, Any]]:
        """Rows of images in the folder of a class."""
        return [row for row in self.rows if row.get("label")]

    @property
    def scored(self) -> list[dict[str, Any]]:
        """Labelled rows, without images that the run trained or validated on."""
        return [row for row in self.labelled if not is_known(row)]

    @property
    def accuracy(self) -> float | None:
        """Share of the `scored` images whose class was predicted; None without any."""
        scored = self.scored
        return sum(row["correct"] for row in scored) / len(scored) if scored else None


def predict_images(
    trained: Callable[[], Trained], files: Sequence[SourceFile], output: Path, options: Options, known: CaseMatcher,
    progress: Progress,
) -> ImageResults:  # fmt: skip
    """Classify every readable image and write predictions.csv to the folder `output`.

    Args:
        trained: loads the network; called once the folder is known to be writable.
        known: images that the run trained and validated on.

    Raises:
        DataError: no image could be read.
        UsageError: `output` cannot be written, or holds predictions and may not be overwritten.
    """
    results = ImageResults()
    with output_folder(output, [PREDICTIONS], options.overwrite):
        network = trained()
        done = 0
        read: list[tuple[SourceFile, Picture]] = []
        for batch, pictures in _read_ahead(files, options.batch_size or network.batch_size):
            read += _classify(network, batch, pictures, results)
            done += len(batch)
            progress(done, len(files))
        if not results.rows:
            more = f" The other {len(files) - 1} images could not be read either." if len(files) > 1 else ""
            raise DataError(f"{results.failed[0][1]}{more}")
        _name_patients(results, [picture for _, picture in read])
        _mark_known(results, read, known)
        if not results.labelled:
            results.rows = [{k: v for k, v in row.items() if k not in ("label", "correct")} for row in results.rows]
        write_table(output / PREDICTIONS, results.rows)
    return results


def read_picture(file: SourceFile) -> Picture:
    """Read an image, or a slice of the Cheng set, as for a store; raise DataError if it cannot be read."""
    reader = ChengReader() if is_slice(file) else BrainMRIReader()
    case = Case(printable(file.relative), {"image": file}, file.path, {"class": _class_of(file), "part": None})
    image = reader.read_case(case)
    thumbnail, head = (
        np.frombuffer(bytes.fromhex(image.meta[name]), np.uint8).reshape(SIDE, SIDE) for name in ("thumbnail", "head")
    )
    return Picture(
        np.asarray(image.image), image.meta["sha256"], thumbnail, head, image.meta["class"], image.meta.get("patient")
    )


@torch.inference_mode()
def class_probabilities(trained: Trained, pixels: Sequence[Pixels]) -> NDArray[np.float64]:
    """Return the probabilities `(N, classes)` of images `(256, 256)`."""
    grey = on_device(np.stack(pixels), trained.device)
    size = trained.facts.resized
    assert size is not None  # images are always resized
    probabilities: NDArray[np.float64] = trained.logits(unit_images(grey, size)).softmax(1).double().cpu().numpy()
    return probabilities


def _classify(
    trained: Trained, files: Sequence[SourceFile], read: Sequence[Picture | DataError], results: ImageResults
) -> list[tuple[SourceFile, Picture]]:
    """Add the rows of the readable images; return these images without their pixels."""
    readable: list[tuple[SourceFile, Picture]] = []
    for file, picture in zip(files, read, strict=True):
        if isinstance(picture, DataError):
            results.failed.append((printable(file.relative), str(picture)))
        else:
            readable.append((file, picture))
    if readable:
        probabilities = class_probabilities(trained, [picture.pixels for _, picture in readable])
        results.rows += [
            _row(file, picture.label, row, trained.facts.classes)
            for (file, picture), row in zip(readable, probabilities, strict=True)
        ]
    return [(file, replace(picture, pixels=np.empty((0, 0), np.uint8))) for file, picture in readable]


def _name_patients(results: ImageResults, pictures: Sequence[Picture]) -> None:
    """Add the patient to each row: that of the file, or of the recognised slice of the Cheng set; "" if unknown."""
    found = recognise(np.stack([p.thumbnail for p in pictures]), np.stack([p.head for p in pictures])).patients
    for row, picture, recognised in zip(results.rows, pictures, found, strict=True):
        row["patient"] = recognised if picture.patient is None else picture.patient


def _mark_known(results: ImageResults, read: Sequence[tuple[SourceFile, Picture]], known: CaseMatcher) -> None:
    """Add to each row whether the run trained or validated on its image."""
    paths = [str(row["path"]) for row in results.rows]
    digests, thumbnails = [picture.digest for _, picture in read], [picture.thumbnail for _, picture in read]
    absolute_paths = [printable(str(file.path.absolute())) for file, _ in read]
    heads, patients = np.stack([picture.head for _, picture in read]), [str(row["patient"]) for row in results.rows]
    matches = known.find_images(paths, digests, np.stack(thumbnails), heads, patients, absolute_paths)
    results.rows = [{**row, **match_columns(match)} for row, match in zip(results.rows, matches, strict=True)]
    if known.told_by == "content":
        results.notes += name_match_notes(results.rows, paths, "pixels", (ID,))
    blank = [path for path, thumbnail in zip(paths, thumbnails, strict=True) if np.ptp(thumbnail) < _MIN_CONTRAST]
    if blank:
        results.notes.append(f"blank images, predictions are meaningless: {listed(blank)}")


def _row(
    file: SourceFile, label: str | None, probabilities: NDArray[np.float64], classes: Sequence[str]
) -> dict[str, Any]:
    predicted = classes[int(probabilities.argmax())]
    known = label in classes
    return {
        "path": printable(file.relative), "label": label if known else "", "prediction": predicted,
        "correct": int(predicted == label) if known else "", "confidence": float(probabilities.max()),
        **{f"p_{name}": float(value) for name, value in zip(classes, probabilities, strict=True)},
    }  # fmt: skip


def _class_of(file: SourceFile) -> str | None:
    """Return the class named by the nearest folder around an image, up to the source folder; None without one."""
    folders = PurePosixPath(file.relative).parent.parts
    source = file.path.parents[len(folders)].resolve().name
    return next((kind for name in (*reversed(folders), source) if (kind := class_of(name))), None)


def _read_ahead(
    files: Sequence[SourceFile], batch_size: int
) -> Iterator[tuple[Sequence[SourceFile], list[Picture | DataError]]]:
    """Yield batches of images, or the errors of reading them, read by threads while the batch before is classified."""

    def read(file: SourceFile) -> Picture | DataError:
        try:
            return read_picture(file)
        except DataError as error:
            return error

    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(available_cpus(), thread_name_prefix="images") as pool:
        pending = [pool.submit(read, file) for file in batches[0]]
        for number, batch in enumerate(batches):
            current, following = pending, batches[number + 1 : number + 2]
            pending = [pool.submit(read, file) for files_ahead in following for file in files_ahead]
            yield batch, [future.result() for future in current]
