"""Images: their classes, from files prepared as prepare-data does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_tumor.data.case import Case, SourceFile
from hpc_tumor.data.feed.samples import unit_images
from hpc_tumor.data.raw.brain_mri import BrainMRIReader, class_of
from hpc_tumor.data.splits.near_duplicates import SIDE
from hpc_tumor.errors import DataError
from hpc_tumor.prediction.known import Known, by_name_alone, columns, is_known
from hpc_tumor.prediction.options import Options
from hpc_tumor.prediction.outputs import output_folder, write_table
from hpc_tumor.prediction.trained import Trained
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.vocabulary import listed, printable

PREDICTIONS = "predictions.csv"
_LEAST_CONTRAST = 4  # grey levels of a thumbnail
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image as a network takes it, and by what it is known again.

    Attributes:
        pixels: `(256, 256)` uint8: grey, cropped to the head and resized as in a store.
        digest: SHA-256 of its decoded pixels, in hexadecimal.
        thumbnail: `(32, 32)` uint8 of the whole picture.
    """

    pixels: Pixels
    digest: str
    thumbnail: Pixels


@dataclass
class ImageResults:
    """Predictions: a row per image, and (path, reason) of those refused."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> list[dict[str, Any]]:
        """The rows of images that lie in the folder of a class."""
        return [row for row in self.rows if row.get("label")]

    @property
    def scored(self) -> list[dict[str, Any]]:
        """The labelled rows without those of images that the run trained or validated on."""
        return [row for row in self.labelled if not is_known(row)]

    @property
    def accuracy(self) -> float | None:
        """Share of the `scored` images whose class was predicted; None where there are none."""
        scored = self.scored
        return sum(row["correct"] for row in scored) / len(scored) if scored else None


def predict_images(
    trained: Callable[[], Trained], files: Sequence[SourceFile], output: Path, options: Options, known: Known,
    progress: Callable[[int, int], None],
) -> ImageResults:  # fmt: skip
    """Classify every image and write predictions.csv to the folder `output`; what cannot be read is left out.

    Args:
        trained: gives the network; asked for when the folder can be written to.
        known: the images that the run trained and validated on.

    Raises:
        DataError: no image could be read.
        UsageError: `output` cannot be written, or holds predictions that are not to be replaced.
    """
    results = ImageResults()
    with output_folder(output, [PREDICTIONS], options.overwrite):
        network = trained()
        done = 0
        marks: list[tuple[str, Pixels, str]] = []
        for some, read in _read_ahead(files, options.batch_size or network.batch_size):
            marks += _classify(network, some, read, results)
            done += len(some)
            progress(done, len(files))
        if not results.rows:
            more = f" So are the other {len(files) - 1} images." if len(files) > 1 else ""
            raise DataError(f"{results.failed[0][1]}{more}")
        _mark_known(results, marks, known)
        if not results.labelled:
            results.rows = [{k: v for k, v in row.items() if k not in ("label", "correct")} for row in results.rows]
        write_table(output / PREDICTIONS, results.rows)
    return results


def read_picture(file: SourceFile) -> Picture:
    """Read an image as for a store. DataError where it cannot be read."""
    reader = BrainMRIReader()
    case = Case(printable(file.relative), {"image": file}, file.path, {"class": None, "part": None})
    found = reader.read_case(case)
    thumbnail = np.frombuffer(bytes.fromhex(found.meta["thumbnail"]), np.uint8).reshape(SIDE, SIDE)
    return Picture(np.asarray(found.image), found.meta["sha256"], thumbnail)


@torch.inference_mode()
def chances(trained: Trained, pixels: Sequence[Pixels]) -> NDArray[np.float64]:
    """Probabilities `(N, classes)` of images `(256, 256)`."""
    grey = torch.from_numpy(np.stack(pixels)).to(trained.device)
    size = trained.facts.resized
    assert size is not None  # images always are
    found: NDArray[np.float64] = trained.logits(unit_images(grey, size)).softmax(1).double().cpu().numpy()
    return found


def _classify(
    trained: Trained, files: Sequence[SourceFile], read: Sequence[Picture | DataError], results: ImageResults
) -> list[tuple[str, Pixels, str]]:
    """Add the rows of those that could be read; gives the digest, the thumbnail and the absolute path of each."""
    good: list[tuple[SourceFile, Picture]] = []
    for file, one in zip(files, read, strict=True):
        if isinstance(one, DataError):
            results.failed.append((printable(file.relative), str(one)))
        else:
            good.append((file, one))
    if good:
        found = chances(trained, [picture.pixels for _, picture in good])
        results.rows += [_row(file, of, trained.facts.classes) for (file, _), of in zip(good, found, strict=True)]
    return [(picture.digest, picture.thumbnail, printable(str(file.path.absolute()))) for file, picture in good]


def _mark_known(results: ImageResults, marks: Sequence[tuple[str, Pixels, str]], known: Known) -> None:
    """Say in each row whether the run trained or validated on its image."""
    paths = [str(row["path"]) for row in results.rows]
    digests, thumbnails, places = zip(*marks, strict=True)
    matches = known.find_images(paths, digests, np.stack(thumbnails), places)
    results.rows = [{**row, **columns(match)} for row, match in zip(results.rows, matches, strict=True)]
    if known.told_by == "content":
        results.notes += by_name_alone(results.rows, paths, "pixels")
    blank = [path for path, thumbnail in zip(paths, thumbnails, strict=True) if np.ptp(thumbnail) < _LEAST_CONTRAST]
    if blank:
        results.notes.append(f"of a single grey, so that nothing can be told of them: {listed(blank)}")


def _row(file: SourceFile, found: NDArray[np.float64], classes: Sequence[str]) -> dict[str, Any]:
    label, predicted = _class_of(file), classes[int(found.argmax())]
    known = label in classes
    return {
        "path": printable(file.relative), "label": label if known else "", "prediction": predicted,
        "correct": int(predicted == label) if known else "", "confidence": float(found.max()),
        **{f"p_{name}": float(chance) for name, chance in zip(classes, found, strict=True)},
    }  # fmt: skip


def _class_of(file: SourceFile) -> str | None:
    """The class of the nearest folder around an image that is named after one, up to the source's own."""
    folders = PurePosixPath(file.relative).parent.parts
    source = file.path.parents[len(folders)].resolve().name
    return next((kind for name in (*reversed(folders), source) if (kind := class_of(name))), None)


def _read_ahead(
    files: Sequence[SourceFile], batch_size: int
) -> Iterator[tuple[Sequence[SourceFile], list[Picture | DataError]]]:
    """Batches of images, read by threads while the ones before are classified; or why one cannot be read."""

    def read(file: SourceFile) -> Picture | DataError:
        try:
            return read_picture(file)
        except DataError as error:
            return error

    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(available_cpus(), thread_name_prefix="images") as pool:
        pending = [pool.submit(read, file) for file in batches[0]]
        for number, batch in enumerate(batches):
            now, following = pending, batches[number + 1 : number + 2]
            pending = [pool.submit(read, file) for some in following for file in some]
            yield batch, [one.result() for one in now]
