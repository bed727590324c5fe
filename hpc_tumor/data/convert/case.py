"""Conversion of cases in a worker process: read them, and write the result to the staging folder."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from hpc_tumor.data.brain import BrainStatistics, brain_statistics, label_counts
from hpc_tumor.data.case import Case, CaseData, CaseReader
from hpc_tumor.data.contrast import NUMBERS, contrast
from hpc_tumor.data.convert.target import disk_error
from hpc_tumor.data.editions import EDITIONS, UncertainLabels
from hpc_tumor.data.splits.sketch import Sketches, pack_sketches, sketch
from hpc_tumor.data.store.nodes import IMAGE_COMPRESSION, volume_layout, write_array, write_file, write_group
from hpc_tumor.data.store.ome import image_metadata, label_metadata
from hpc_tumor.data.store.shards import checksum, is_sound, pack_chunk
from hpc_tumor.errors import DataError
from hpc_tumor.system.atomic import plain
from hpc_tumor.vocabulary import TUMOUR_LABELS

Row = dict[str, Any]  # the store's metadata of a case, as JSON


@dataclass(frozen=True)
class Unit:
    """Cases converted and committed together: one patient, or a batch of images. `staged` is the result's path."""

    reader: CaseReader
    cases: Sequence[Case]
    staged: Path
    threads: int


@dataclass(frozen=True)
class UnitResult:
    """Rows of the converted cases, and (case, reason) of the refused ones.

    `uncertain` is True if the meaning of a case's labels is ambiguous.
    """

    unit: Unit
    rows: Sequence[Row]
    failed: Sequence[tuple[str, str]] = field(default_factory=list)
    uncertain: bool = False


def convert_unit(unit: Unit, begin: Callable[[str], None] = lambda case: None) -> UnitResult:
    """Convert one unit; `begin` is called with the id of each case before it is read.

    Cases that cannot be read are in the result. Raises StorageError if the result cannot be written.
    """
    rows: list[Row] = []
    failed: list[tuple[str, str]] = []
    chunks: list[bytes] = []
    masks: list[bytes] = []
    uncertain = False
    for case in unit.cases:
        begin(case.id)
        try:
            data = unit.reader.read_case(case)
            if unit.reader.task == "segmentation":
                rows.append(_write_volume(unit, case, data))
            else:
                chunks.append(pack_chunk(data.image, IMAGE_COMPRESSION))
                masks.append(b"" if data.label is None else pack_chunk(data.label, IMAGE_COMPRESSION))
                rows.append({"case": case.id, "signature": case.signature, "bytes": case.bytes, **data.meta})
                if data.label is not None:
                    rows[-1]["mask"] = hashlib.sha256(data.label.tobytes()).hexdigest()
        except DataError as error:
            failed.append((case.id, str(error)))
            uncertain |= isinstance(error, UncertainLabels)
        except MemoryError:
            failed.append((case.id, f"{case.folder} needs more memory than is available."))
        except OSError as error:
            raise disk_error(error, case.id, unit.staged.parents[1]) from error
    if chunks:
        try:
            write_file(unit.staged, pack_images(rows, chunks, masks))
        except OSError as error:
            raise disk_error(error, f"images from {unit.cases[0].id} on", unit.staged.parents[1]) from error
    return UnitResult(unit, rows, failed, uncertain)


def pack_images(rows: Sequence[Row], chunks: Sequence[bytes], masks: Sequence[bytes]) -> bytes:
    """Pack converted images as one file: their rows, and the chunks of images and masks for shards of the store.

    The chunk of an image without a mask is empty.
    """
    sizes = [len(chunk) for chunk in (*chunks, *masks)]
    head = json.dumps({"rows": list(rows), "sizes": sizes}).encode()
    return b"".join([len(head).to_bytes(8, "little"), head, checksum(head), *chunks, *masks])


def unpack_images(path: Path) -> tuple[list[Row], list[bytes], list[bytes]]:
    """Reverse `pack_images`. Raises ValueError if the file is damaged, OSError if it cannot be read."""
    data = memoryview(path.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    if checksum(bytes(data[8:end])) != data[end : end + 4]:
        raise ValueError(f"{path} is damaged")
    head = json.loads(bytes(data[8:end]))
    chunks, end = [], end + 4
    for size in head["sizes"]:
        chunks.append(bytes(data[end : end + size]))
        end += size
    count = len(head["rows"])
    if end != len(data) or not all(is_sound(chunk) for chunk in (*chunks[:count], *filter(None, chunks[count:]))):
        raise ValueError(f"{path} is damaged")
    return head["rows"], chunks[:count], chunks[count:] or [b""] * count  # earlier versions wrote no masks


def _write_volume(unit: Unit, case: Case, data: CaseData) -> Row:
    assert data.label is not None
    assert data.spacing is not None
    brain = brain_statistics(data.image, data.background)
    row = _row(case, data, brain, sketch(data.image, brain, data.background))
    row["checksum"] = _checksum(row)
    folder = unit.staged
    image, label = data.image, data.label
    write_group(folder, {"ome": image_metadata(data.id, data.spacing, brain), "hpc_tumor": row})
    write_group(folder / "labels", {"ome": {"version": "0.5", "labels": ["seg"]}})
    write_group(folder / "labels" / "seg", {"ome": label_metadata(data.spacing, EDITIONS[data.meta["labels"]])})
    write_array(folder / "0", [image], volume_layout(image.shape, image.dtype), unit.threads)
    write_array(folder / "labels" / "seg" / "0", [label], volume_layout(label.shape, label.dtype), unit.threads)
    return row


def is_intact(row: Row) -> bool:
    """Return True if a patient's row is unchanged since `convert_unit` wrote it."""
    return row.get("checksum") == _checksum({key: value for key, value in row.items() if key != "checksum"})


def _checksum(row: Row) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def _row(case: Case, data: CaseData, brain: BrainStatistics, sketches: Sketches) -> Row:
    assert data.label is not None
    digests: Mapping[str, str] = data.meta["sha256"]
    files = {
        role: {"path": file.relative, "size": file.size, "mtime_ns": file.mtime_ns, "sha256": digests.get(role)}
        for role, file in sorted(case.files.items())
    }
    return cast(Row, plain({
        "case": case.id,
        "signature": case.signature,
        "bytes": case.bytes,
        "source": files,
        "shape": data.label.shape,
        "dtype": data.image.dtype.name,
        "spacing": data.spacing,
        "affine": data.affine,
        "header": base64.b64encode(data.header).decode(),
        "background": brain.background,
        "tolerance": brain.tolerance,
        **({} if data.background is None else {"slice_background": data.background.T}),
        "statistics": brain.moments,
        "brain_voxels": brain.voxels,
        # Separately standardised slices are not comparable in brightness.
        "contrast": [None] * NUMBERS if data.background is not None else contrast(data.image, brain),
        "label_counts": label_counts(data.label, TUMOUR_LABELS + 1),
        "content": _content(data, brain),
        "scans": brain.digest,
        "sketch": pack_sketches(sketches),
        "meta": {key: value for key, value in data.meta.items() if key != "sha256"},
    }))  # fmt: skip


def _content(data: CaseData, brain: BrainStatistics) -> str:
    assert data.label is not None
    assert data.affine is not None
    tumour = data.label.reshape(len(data.label), -1).any(axis=1)
    digest = hashlib.sha256(brain.digest.encode() + tumour.tobytes())
    for array in (data.label[tumour], np.round(data.affine, 6)):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
