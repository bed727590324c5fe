"""Images: their classes, from files prepared as prepare-data does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_tumor.data.brain_mri import BrainMRIReader, class_of
from hpc_tumor.data.case import Case, SourceFile
from hpc_tumor.data.samples import unit_images
from hpc_tumor.errors import DataError
from hpc_tumor.names import printable
from hpc_tumor.prediction.options import Options
from hpc_tumor.prediction.outputs import output_folder, write_table
from hpc_tumor.prediction.trained import Trained
from hpc_tumor.resources import available_cpus

PREDICTIONS = "predictions.csv"
Pixels = NDArray[np.uint8]


@dataclass
class ImageResults:
    """What was predicted: a row per image, and (path, reason) of those refused."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def labelled(self) -> list[dict[str, Any]]:
        """The rows of images that lie in the folder of a class."""
        return [row for row in self.rows if row.get("label")]

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images whose class was predicted; None where there are none."""
        labelled = self.labelled
        return sum(row["correct"] for row in labelled) / len(labelled) if labelled else None


def predict_images(
    trained: Callable[[], Trained], files: Sequence[SourceFile], output: Path, options: Options,
    progress: Callable[[int, int], None],
) -> ImageResults:  # fmt: skip
    """Classify every image and write predictions.csv to the folder `output`; what cannot be read is left out.

    Args:
        trained: gives the network; asked for when the folder can be written to.

    Raises:
        DataError: no image could be read.
        UsageError: `output` cannot be written, or holds predictions that are not to be replaced.
    """
    results = ImageResults()
    with output_folder(output, [PREDICTIONS], options.overwrite):
        network = trained()
        done = 0
        for some, read in _read_ahead(files, options.batch_size or network.batch_size):
            _classify(network, some, read, results)
            done += len(some)
            progress(done, len(files))
        if not results.rows:
            more = f" So are the other {len(files) - 1} images." if len(files) > 1 else ""
            raise DataError(f"{results.failed[0][1]}{more}")
        if not results.labelled:
            results.rows = [{k: v for k, v in row.items() if k not in ("label", "correct")} for row in results.rows]
        write_table(output / PREDICTIONS, results.rows)
    return results


def read_pixels(file: SourceFile) -> Pixels:
    """Grey, cropped to the head and resized as in a store: `(256, 256)` uint8. DataError where it cannot be read."""
    reader = BrainMRIReader()
    case = Case(printable(file.relative), {"image": file}, file.path, {"class": None, "part": None})
    return np.asarray(reader.read_case(case).image)


@torch.inference_mode()
def chances(trained: Trained, pixels: Sequence[Pixels]) -> NDArray[np.float64]:
    """Probabilities `(N, classes)` of images `(256, 256)`."""
    grey = torch.from_numpy(np.stack(pixels)).to(trained.device)
    size = trained.facts.resized
    assert size is not None  # images always are
    found: NDArray[np.float64] = trained.logits(unit_images(grey, size)).softmax(1).double().cpu().numpy()
    return found


def _classify(
    trained: Trained, files: Sequence[SourceFile], read: Sequence[Pixels | DataError], results: ImageResults
) -> None:
    good: list[tuple[SourceFile, Pixels]] = []
    for file, one in zip(files, read, strict=True):
        if isinstance(one, DataError):
            results.failed.append((printable(file.relative), str(one)))
        else:
            good.append((file, one))
    if good:
        found = chances(trained, [pixels for _, pixels in good])
        results.rows += [_row(file, of, trained.facts.classes) for (file, _), of in zip(good, found, strict=True)]


def _row(file: SourceFile, found: NDArray[np.float64], classes: Sequence[str]) -> dict[str, Any]:
    label, predicted = class_of(file.path.resolve().parent.name), classes[int(found.argmax())]
    known = label in classes
    return {
        "path": printable(file.relative), "label": label if known else "", "prediction": predicted,
        "correct": int(predicted == label) if known else "", "confidence": float(found.max()),
        **{f"p_{name}": float(chance) for name, chance in zip(classes, found, strict=True)},
    }  # fmt: skip


def _read_ahead(
    files: Sequence[SourceFile], batch_size: int
) -> Iterator[tuple[Sequence[SourceFile], list[Pixels | DataError]]]:
    """Batches of images, read by threads while the ones before are classified; or why one cannot be read."""

    def read(file: SourceFile) -> Pixels | DataError:
        try:
            return read_pixels(file)
        except DataError as error:
            return error

    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(available_cpus(), thread_name_prefix="images") as pool:
        pending = [pool.submit(read, file) for file in batches[0]]
        for number, batch in enumerate(batches):
            now, following = pending, batches[number + 1 : number + 2]
            pending = [pool.submit(read, file) for some in following for file in some]
            yield batch, [one.result() for one in now]
