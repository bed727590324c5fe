"""What a network said of patients or images, and what was exported, as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpc_tumor.console import counted, duration, out, size
from hpc_tumor.errors import DataError
from hpc_tumor.results.layout import NOTHING, Column, Table

if TYPE_CHECKING:
    from hpc_tumor.prediction.export import Export
    from hpc_tumor.prediction.predict import Prediction

MOST_ROWS = 20  # shown one by one; all are in the files
_STRUCTURES = ("NCR", "ED", "ET", "WT", "TC")


def show_prediction(found: Prediction) -> None:
    """The result of the command. Raises DataError, after it, where some of many could not be read."""
    for note in found.notes:
        out.warning(note)
    out.result(prediction_values(found), show=lambda: _show(found))
    unit = "patient" if found.facts.task == "segmentation" else "image"
    out.note(f"\nwritten: {found.output} ({counted(len(found.rows), unit)} in {duration(found.seconds)})")
    if found.failed:
        raise _refused(found, unit)


def prediction_values(found: Prediction) -> dict[str, Any]:
    """A prediction as JSON values."""
    facts = found.facts
    values: dict[str, Any] = {
        "run": facts.run, "model": facts.model, "epoch": facts.epoch, "weights_lost": facts.weights_lost,
        "task": facts.task, "device": found.device, "precision": found.precision, "output": found.output,
        "seconds": found.seconds,
    }  # fmt: skip
    if facts.task == "classification":
        values |= {"classes": facts.classes, "labelled": found.labelled, "accuracy": found.accuracy}
    failed = [{"case": case, "reason": reason} for case, reason in found.failed]
    return {**values, "predictions": found.rows, "failed": failed, "notes": found.notes}


def patients_table(found: Prediction) -> Table:
    """Volumes of the labels of each patient, and Dice where its labels are known."""
    scored = any("scores" in row for row in found.rows)
    columns = [Column("patient", "left"), *(Column(f"{name} ml") for name in found.facts.classes)]
    if scored:
        columns += [Column(f"Dice {name}" if name == _STRUCTURES[0] else name) for name in _STRUCTURES]
    columns.append(Column("time", keep=1))
    rows = [_patient(row, scored, found.facts.classes) for row in found.rows[:MOST_ROWS]]
    return Table(_title(found), tuple(columns), tuple(rows), tuple(_more(found.rows)))


def images_table(found: Prediction) -> Table:
    """What each image shows, and what it should where its folder says so."""
    labelled = found.labelled > 0
    columns = [Column("image", "left"), Column("prediction", "left"), Column("confidence")]
    columns += [Column("label", "left")] * labelled
    rows = [
        (row["path"], row["prediction"], f"{100 * row['confidence']:.1f} %", *([row["label"] or NOTHING] * labelled))
        for row in found.rows[:MOST_ROWS]
    ]
    return Table(_title(found), tuple(columns), tuple(rows), tuple(_more(found.rows)))


def show_export(found: Export) -> None:
    """The result of the command."""
    facts, (channels, height, width) = found.facts, found.shape
    values = {
        "file": found.file, "bytes": found.bytes, "run": facts.run, "model": facts.model, "epoch": facts.epoch,
        "weights_lost": facts.weights_lost, "input": ["N", channels, height, width], "difference": found.difference,
    }  # fmt: skip
    for note in facts.notes:
        out.warning(note)
    agreed = "not compared with torch: onnxruntime is not installed"
    if found.difference is not None:
        agreed = f"onnxruntime's logits differ from torch's by at most {found.difference:.1g}"
    lines = [
        ("network", f"{facts.model}, epoch {facts.epoch} of {facts.run}"),
        ("input", f"images (N, {channels}, {height}, {width}), float32"),
        ("output", f"logits of {', '.join(facts.classes)}"),
        ("check", agreed),
        ("written", f"{found.file}: {size(found.bytes)}"),
    ]
    out.result(values, show=lambda: out.pairs(lines))


def _show(found: Prediction) -> None:
    if found.facts.task == "segmentation":
        out.table(patients_table(found))
        return
    out.table(images_table(found))
    counts = Counter(row["prediction"] for row in found.rows)
    out.text(", ".join(f"{name} {counts[name]:,}" for name in found.facts.classes))
    if found.accuracy is not None:
        of = counted(found.labelled, "image")
        out.text(f"accuracy {100 * found.accuracy:.1f} % of the {of} in the folder of a class")


def _title(found: Prediction) -> str:
    facts = found.facts
    return f"{facts.model}, epoch {facts.epoch} of {facts.run} · {found.device}, {found.precision}"


def _patient(row: dict[str, Any], scored: bool, labels: Sequence[str]) -> tuple[str, ...]:
    dice = [f"{row['scores'][f'dice_{name}']:.3f}" if "scores" in row else NOTHING for name in _STRUCTURES]
    volumes = (f"{row[f'ml_{name}']:.1f}" for name in labels)
    return (row["case"], *volumes, *(dice if scored else ()), duration(row["seconds"]))


def _more(rows: Sequence[Any]) -> list[str]:
    left = len(rows) - MOST_ROWS
    return [f"and {left:,} more: --json names all of them, and so do the files"] if left > 0 else []


def _refused(found: Prediction, unit: str) -> DataError:
    for _, reason in found.failed[:MOST_ROWS]:
        out.warning(reason)
    if len(found.failed) > MOST_ROWS:
        out.warning(f"and {len(found.failed) - MOST_ROWS} more; --json names all of them")
    total = counted(len(found.rows) + len(found.failed), unit)
    return DataError(f"{len(found.failed)} of {total} could not be read, see above; the others are in {found.output}.")
