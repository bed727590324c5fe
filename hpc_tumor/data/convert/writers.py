"""Writers of a store, one per task, driven by prepare.py.

A writer determines which cases to convert, commits each result by a rename, and writes the index at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpc_tumor.data.case import Case, CaseReader
from hpc_tumor.data.convert.case import Row, Unit, UnitResult, is_intact, unpack_images
from hpc_tumor.data.convert.target import Target, remove
from hpc_tumor.data.editions import EDITIONS
from hpc_tumor.data.patients.recognise import Recognised, recognise
from hpc_tumor.data.patients.reference import patient_of
from hpc_tumor.data.splits.near_duplicates import SIDE, near_duplicate_groups
from hpc_tumor.data.splits.sketch import group_same_scans, unpack_sketches
from hpc_tumor.data.store.nodes import (
    GROUP_FILE,
    IMAGE_COMPRESSION,
    ArrayLayout,
    read_attributes,
    write_column,
    write_group,
    write_packed_array,
)
from hpc_tumor.data.store.ome import VERSION, mask_metadata, stack_metadata
from hpc_tumor.data.store.shards import pack_chunk
from hpc_tumor.data.store.stack import IMAGES, MASKS
from hpc_tumor.data.store.store import Store, read_about
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import CAVITY, CLASSES, LABEL_NAMES, MODALITIES, TUMOUR_LABELS

IMAGES_PER_UNIT = 64
IMAGES_PER_SHARD = 1024
_CONVERTED = ".converted"  # converted images, before they are combined


class Writer(Protocol):
    """Writer of one kind of store."""

    rows: dict[str, Row]  # of all cases kept or committed

    def units(self, cases: Sequence[Case], threads: int, kept: Collection[str] = ()) -> list[Unit]:
        """Return the units to convert; adds stored cases that are unchanged, or listed in `kept`, to `rows`."""

    def commit(self, result: UnitResult) -> None:
        """Add a result to the store, in one rename."""

    def finish(self, about: dict[str, Any]) -> bool:
        """Write the index of `rows`, and mark the store as complete; return False if nothing changed."""


def make_writer(
    target: Target, reader: CaseReader, clinical: Mapping[str, Row] | None = None, origin: str = ""
) -> Writer:
    """Return the writer for a reader's task.

    Args:
        clinical: facts of patients, by case.
        origin: name of the source of a store that was converted from one source without a name.
    """
    if reader.task == "segmentation":
        return VolumeWriter(target, reader, clinical or {})
    return ImageWriter(target, reader, origin)


def fingerprint(identity: dict[str, Any], contents: Sequence[tuple[str, str]]) -> str:
    """Hash schema, dataset, options and every case's content: equal for equal stores."""
    return hashlib.sha256(json.dumps([identity, sorted(contents)], sort_keys=True).encode()).hexdigest()


class VolumeWriter:
    """Writer of patients, one folder each. Clinical facts are only in the index: they can change separately."""

    def __init__(self, target: Target, reader: CaseReader, clinical: Mapping[str, Row]):
        self.target = target
        self.reader = reader
        self.clinical = clinical
        self.rows: dict[str, Row] = {}
        self.folder = target.path / "cases"

    def units(self, cases: Sequence[Case], threads: int, kept: Collection[str] = ()) -> list[Unit]:
        staging = self.target.staging
        todo: list[Unit] = []
        for case in cases:
            row = self._stored(case.id)
            if row is not None and row.get("signature") == case.signature:
                self.rows[case.id] = row
            else:
                todo.append(Unit(self.reader, [case], staging / case.id, threads))
        self.rows.update({case: row for case in kept if (row := self._stored(case)) is not None})
        return todo

    def _stored(self, case: str) -> Row | None:
        """Return the stored row of a case if it is intact and not to be overwritten."""
        row = None if self.target.overwrite else (read_attributes(self.folder / case) or {}).get("hpc_tumor")
        return row if isinstance(row, dict) and is_intact(row) else None

    def commit(self, result: UnitResult) -> None:
        for row in result.rows:
            self.target.begin()
            if not (self.folder / GROUP_FILE).exists():
                self._begin_folder()
            self.target.replace(result.unit.staged, self.folder / row["case"])
            self.rows[row["case"]] = row

    def _begin_folder(self) -> None:
        staged = self.target.staging / "group"
        write_group(staged, {})
        self.folder.mkdir(exist_ok=True)
        (staged / GROUP_FILE).replace(self.folder / GROUP_FILE)

    def finish(self, about: dict[str, Any]) -> bool:
        rows = [self.rows[key] for key in sorted(self.rows)]
        for entry in list(self.folder.iterdir()):
            if entry.is_dir() and entry.name not in self.rows:
                self.target.begin()
                self.target.discard(entry)
        clinical = [self.clinical.get(row["case"], {}) for row in rows]
        # Splits are stratified by grade, so clinical facts are part of the fingerprint.
        contents = [
            (row["case"], row["content"] + (json.dumps(facts, sort_keys=True) if facts else ""))
            for row, facts in zip(rows, clinical, strict=True)
        ]
        about = {"cases": len(rows), "fingerprint": fingerprint(self.target.identity, contents), **about}
        if _unchanged(self.target, about):
            return False
        self._write_index(self.target.staging / "index", rows, clinical)
        self.target.replace(self.target.staging / "index", self.target.path / "index")
        self.target.finish(about)
        return True

    def _write_index(self, index: Path, rows: Sequence[Row], clinical: Sequence[Row]) -> None:
        cavity = any(sum(counts[TUMOUR_LABELS] for counts in row["label_counts"]) for row in rows)
        labels = (*LABEL_NAMES, CAVITY) if cavity else LABEL_NAMES
        editions = [row["meta"]["labels"] for row in rows]
        write_group(index, {
            "case_ids": [row["case"] for row in rows],
            "dtypes": [row["dtype"] for row in rows],
            "scans": [row["scans"] for row in rows],
            "clinical": clinical,
            "channels": MODALITIES,
            "labels": labels,
            "editions": editions,
            "numbers": {name: EDITIONS[name].words for name in sorted(set(editions))},
        })  # fmt: skip
        depth = max(row["shape"][0] for row in rows)
        counts = np.zeros((len(rows), depth, len(labels)), np.int32)
        for row, into in zip(rows, counts, strict=True):
            into[: row["shape"][0]] = np.array(row["label_counts"])[:, : len(labels)]
        write_column(index, "label_counts", counts)
        if "slice_background" in rows[0]:  # slices were standardised separately
            outside = np.zeros((len(rows), depth, len(MODALITIES)))
            for row, into in zip(rows, outside, strict=True):
                into[: row["shape"][0]] = row["slice_background"]
            write_column(index, "slice_background", outside)
        for name in ("shape", "spacing", "background", "tolerance", "statistics", "brain_voxels", "contrast"):
            write_column(index, name, [row[name] for row in rows])
        sketches = np.stack([unpack_sketches(row["sketch"], len(MODALITIES)) for row in rows])
        write_column(index, "sketch", sketches)
        write_column(index, "group", group_same_scans(sketches, [row["scans"] for row in rows]))


class ImageWriter:
    """Writer of images, all in one array. Converted images are kept in small files, so that a conversion can resume."""

    def __init__(self, target: Target, reader: CaseReader, origin: str = ""):
        self.target = target
        self.reader = reader
        self.origin = origin
        self.rows: dict[str, Row] = {}
        self.waiting = target.path / _CONVERTED
        self._places: dict[str, tuple[Path | None, int]] = {}  # file and position; None: the old store
        self._old: Store | None = None
        # Waiting files of other options are ignored.
        self._options = hashlib.sha256(json.dumps(target.identity, sort_keys=True).encode()).hexdigest()[:8]

    def units(self, cases: Sequence[Case], threads: int, kept: Collection[str] = ()) -> list[Unit]:
        signatures: dict[str, str | None] = {**{case.id: case.signature for case in cases}, **dict.fromkeys(kept)}
        if self.target.overwrite:
            remove(self.waiting)
        else:
            self._keep_old(signatures)
            self._keep_waiting(signatures)
        todo = [case for case in cases if case.id not in self.rows]
        staging = self.target.staging
        units = []
        for start in range(0, len(todo), IMAGES_PER_UNIT):
            batch = todo[start : start + IMAGES_PER_UNIT]
            name = hashlib.sha256("".join(case.signature for case in batch).encode()).hexdigest()[:32]
            units.append(Unit(self.reader, batch, staging / f"{self._options}-{name}.images", threads))
        return units

    def commit(self, result: UnitResult) -> None:
        if not result.rows:
            return
        dataset = (read_about(self.target.path) or {}).get("dataset")
        if dataset is None or dataset not in (self.reader.name, (self.target.existing or {}).get("dataset")):
            self.target.begin()  # marks the folder as a store before files are added
        self.waiting.mkdir(exist_ok=True)
        file = self.waiting / result.unit.staged.name
        result.unit.staged.replace(file)
        self._take(result.rows, file)

    def finish(self, about: dict[str, Any]) -> bool:
        names = sorted(self.rows)
        rows = [self.rows[name] for name in names]
        about = {"cases": len(rows), "fingerprint": image_fingerprint(self.target.identity, rows), **about}
        if _unchanged(self.target, about) and all(self._places[name] == (None, i) for i, name in enumerate(names)):
            remove(self.waiting)
            return False
        staging, size = self.target.staging, self.target.identity["options"]["size"]
        layout = ArrayLayout(
            (len(rows), size, size), np.dtype(np.uint8), (1, size, size),
            (min(IMAGES_PER_SHARD, len(rows)), size, size), ("image", "y", "x"), IMAGE_COMPRESSION,
        )  # fmt: skip
        write_packed_array(staging / "images", layout, self._packed(names))
        masked = any("mask" in row for row in rows)
        if masked:
            group, _, name = MASKS.partition("/")
            write_group(staging / group, {"ome": {"version": VERSION, "labels": [name]}})
            write_group(staging / MASKS, {"ome": mask_metadata(name)})
            write_packed_array(staging / MASKS / "0", layout, self._packed(names, masks=True))
        self._write_index(staging / "index", rows)
        moved = ["images", *(["labels"] if masked else []), "index"]
        self.target.exchange(moved, ["labels"], about, stack_metadata(IMAGES) if masked else None)
        remove(self.waiting)
        return True

    def _write_index(self, index: Path, rows: Sequence[Row]) -> None:
        thumbnails, heads = (
            np.frombuffer(b"".join(bytes.fromhex(row[name]) for row in rows), np.uint8).reshape(-1, SIDE, SIDE)
            for name in ("thumbnail", "head")
        )
        identical = duplicate_groups([row["sha256"] for row in rows])
        found = _recognise_new(rows, thumbnails, heads)
        named = {i: (row["patient"], row["slice"]) for i, row in enumerate(rows) if "patient" in row}
        for i in named:
            rows[i]["recognised"] = int(found.slice[i])  # 0 if unknown; kept only for messages
        masked = any("mask" in row for row in rows)
        write_group(index, {
            "case_ids": [row["case"] for row in rows],
            "classes": CLASSES,
            "parts": ["train", "test"],
            **{name: [row[name] for row in rows] for name in ("mode", "sha256", "signature", "bytes")},
            "source": [row.get("source", "") for row in rows],
            "patient": write_patients(index, found, thumbnails, heads, identical, named),
            **({"mask": [row.get("mask", "") for row in rows]} if masked else {}),
        })  # fmt: skip
        if masked:
            write_column(index, "border", _padded([row.get("border", []) for row in rows]))
        write_column(index, "label", [CLASSES.index(row["class"]) for row in rows])
        write_column(index, "part", [row["part"] == "test" for row in rows])
        write_column(index, "identical", identical)
        write_column(index, "thumbnail", thumbnails)
        for name in ("size", "box"):
            write_column(index, name, [row[name] for row in rows])

    def _keep_old(self, signatures: Mapping[str, str | None]) -> None:
        """Keep images of the old store whose signature is unchanged, or expected to be None (any)."""
        if not (self.target.existing or {}).get("complete"):
            return
        try:
            old = self._old = Store.open(self.target.path)
            sizes, boxes, slices = old.sizes.tolist(), old.boxes.tolist(), old.known_slice.tolist()
            thumbnails, heads, named = old.thumbnails, old.heads, np.isnan(old.correlation)
            patients, sources = old.patients, old.sources
            found = list(zip(slices, old.correlation.tolist(), strict=True))
            classes, parts = [CLASSES[label] for label in old.label], old.part.tolist()
        except (DataError, IndexError):  # convert a damaged store again
            return
        if old.classes != list(CLASSES):
            return
        texts = {name: old.text_column(name) for name in ("mode", "sha256", "signature", "bytes")}
        if self.origin and not any(sources):
            sources = [self.origin] * len(old)
        for i, path in enumerate(old.paths):
            name = f"{self.origin}/{path}" if self.origin else path
            if name in signatures and signatures[name] in (None, texts["signature"][i]):
                row = {key: values[i] for key, values in texts.items()}
                row |= {"case": name, "class": classes[i], "part": parts[i], "size": sizes[i], "box": boxes[i]}
                row |= {"thumbnail": thumbnails[i].tobytes().hex(), "head": heads[i].tobytes().hex()}
                known = {"patient": patients[i], "slice": slices[i]} if named[i] else {"found": found[i]}
                row |= {"source": sources[i], **known}
                if old.masks.present[i]:
                    row |= {"mask": old.masks.digests[i], "border": old.masks.border(i).tolist()}
                self.rows[name] = row
                self._places[name] = (None, i)

    def _keep_waiting(self, signatures: Mapping[str, str | None]) -> None:
        for file in sorted(self.waiting.glob(f"{self._options}-*.images")):
            try:
                rows = unpack_images(file)[0]
            except (OSError, ValueError):  # convert unreadable images again
                continue
            self._take(rows, file, signatures)

    def _take(self, rows: Sequence[Row], file: Path, signatures: Mapping[str, str | None] | None = None) -> None:
        for i, row in enumerate(rows):
            name = row["case"]
            if signatures is not None and (name in self.rows or name not in signatures):
                continue
            if signatures is None or signatures[name] in (None, row["signature"]):
                self.rows[name] = row
                self._places[name] = (file, i)

    def _packed(self, names: Sequence[str], masks: bool = False) -> Iterator[list[bytes]]:
        """Yield the packed images, or masks, of each shard."""
        blank = pack_chunk(np.zeros((self.target.identity["options"]["size"],) * 2, np.uint8), IMAGE_COMPRESSION)
        for start in range(0, len(names), IMAGES_PER_SHARD):
            places = [self._places[name] for name in names[start : start + IMAGES_PER_SHARD]]
            files = {file for file, _ in places if file is not None}
            unpacked = {file: unpack_images(file)[1:] for file in files}
            packed = {file: own if masks else images for file, (images, own) in unpacked.items()}
            old = [i for file, i in places if file is None]
            again: Iterator[Any] = iter(())
            if self._old is not None and old:
                again = iter(self._old.masks.read(old) if masks else self._old.read_images(old).result())
            yield [
                packed[file][i] or blank if file is not None else pack_chunk(next(again), IMAGE_COMPRESSION)
                for file, i in places
            ]


def _recognise_new(rows: Sequence[Row], thumbnails: NDArray[np.uint8], heads: NDArray[np.uint8]) -> Recognised:
    """Recognise the images but those that the old store has recognised, which are `found` in their rows."""
    new = [i for i, row in enumerate(rows) if "found" not in row]
    found = recognise(thumbnails[new], heads[new])
    each = dict(zip(new, zip(found.slice.tolist(), found.correlation.tolist(), strict=True), strict=True))
    slices, correlation = zip(*(row.get("found") or each[i] for i, row in enumerate(rows)), strict=True)
    patients = [patient_of(number) if number else "" for number in slices]
    return Recognised(np.array(slices, np.int32), np.array(correlation, np.float32), patients)


def _padded(borders: Sequence[Sequence[Sequence[float]]]) -> NDArray[np.float64]:
    """Return borders `(n, most points, 2)`, each followed by NaN."""
    padded = np.full((len(borders), max(map(len, borders)), 2), np.nan)
    for border, into in zip(borders, padded, strict=True):
        into[: len(border)] = np.reshape(border, (-1, 2))
    return padded


def write_patients(
    index: Path,
    found: Recognised,
    thumbnails: NDArray[np.uint8],
    heads: NDArray[np.uint8],
    identical: ArrayLike,
    named: Mapping[int, tuple[str, int]],
) -> list[str]:
    """Write the columns of an index on patients and copies; return the patient of each image, "" if unknown.

    `named` has the patient and slice of images whose source names them, by number; others are as `found`.
    """
    # Rounded, so that stores of the same images have the same bytes on most machines.
    patients, slices, correlation = found.patients, found.slice.copy(), found.correlation.round(4)
    for image, (patient, number) in named.items():
        patients[image], slices[image], correlation[image] = patient, number, np.nan
    write_column(index, "head", heads)
    write_column(index, "slice", slices)
    write_column(index, "correlation", correlation)
    write_column(index, "copies", near_duplicate_groups(thumbnails, heads, identical))
    return patients


def image_fingerprint(identity: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return the fingerprint of a store of images."""
    return fingerprint(identity, [(row["case"], _content(row)) for row in rows])


def _content(row: Row) -> str:
    named = f" {row['patient']} {row['slice']}" if "patient" in row else ""
    mask = f" {row['mask']}" if "mask" in row else ""
    return f"{row['class']} {row['part']} {row['sha256']}{named}{mask}"


def duplicate_groups(digests: Sequence[str]) -> list[int]:
    """Number images so that identical digests share a number, in order of appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(digest, len(numbers)) for digest in digests]


def _unchanged(target: Target, about: dict[str, Any]) -> bool:
    return not target.begun and target.existing == {**target.identity, "complete": True, **about}
