"""Predictions of patients or images, and exports, as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from hpc_tumor.console import out, size
from hpc_tumor.data.splits.known_cases import TRAINED, VALIDATED
from hpc_tumor.errors import DataError
from hpc_tumor.prediction.known import count_known, is_known
from hpc_tumor.table import NOTHING, Column, Table, fill
from hpc_tumor.vocabulary import STRUCTURES, counted, duration

if TYPE_CHECKING:
    from hpc_tumor.prediction.export import Export
    from hpc_tumor.prediction.predict import Prediction

MOST_ROWS = 20  # shown one by one; all are in the files
_PARTS = (("trained_on", TRAINED), ("validated_on", VALIDATED))


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
    values |= {"labelled": found.labelled, "scored": found.scored, "known": count_known(found.rows, found.told_by)}
    if facts.task == "classification":
        values |= {"classes": facts.classes, "accuracy": found.accuracy}
    else:
        values["mean"] = mean_scores(found)
    failed = [{"case": case, "reason": reason} for case, reason in found.failed]
    return {**values, "predictions": found.rows, "failed": failed, "notes": found.notes}


def cases_table(found: Prediction) -> Table:
    """A row for each patient, with the volumes of its labels and Dice; or for each image, with its class."""
    known = Column("known", "left", cell=lambda row: row["known"] or "")
    columns = [
        Column("image", "left", cell=lambda row: row["path"]),
        Column("prediction", "left", cell=lambda row: row["prediction"]),
        Column("confidence", cell=lambda row: f"{100 * row['confidence']:.1f} %"),
        Column("label", "left", cell=lambda row: row.get("label") or ""),
        known,
    ]
    if found.facts.task == "segmentation":
        columns = [
            Column("patient", "left", cell=lambda row: row["case"]),
            *map(_volume, found.facts.classes),
            *map(_dice, STRUCTURES),
            known,
            Column("time", keep=1, cell=lambda row: duration(row["seconds"])),
        ]
    left, facts = len(found.rows) - MOST_ROWS, found.facts
    notes = [f"and {left:,} more: --json names all of them, and so do the files"] if left > 0 else []
    title = f"{facts.model}, epoch {facts.epoch} of {facts.run} · {found.device}, {found.precision}"
    return fill(title, columns, found.rows[:MOST_ROWS], notes, NOTHING)


def _volume(label: str) -> Column:
    return Column(f"{label} ml", cell=lambda row: f"{row[f'ml_{label}']:.1f}")


def _dice(name: str) -> Column:
    """Dice of a structure, where the labels of the patient are known."""
    title = f"Dice {name}" if name == STRUCTURES[0] else name
    return Column(title, cell=lambda row: f"{row['scores'][f'dice_{name}']:.3f}" if "scores" in row else "")


def show_export(export: Export) -> None:
    """The result of the command."""
    facts, (channels, height, width) = export.facts, export.shape
    values = {
        "file": export.file, "bytes": export.bytes, "run": facts.run, "model": facts.model, "epoch": facts.epoch,
        "weights_lost": facts.weights_lost, "input": ["N", channels, height, width], "difference": export.difference,
    }  # fmt: skip
    for note in facts.notes:
        out.warning(note)
    agreed = "not compared with torch: onnxruntime is not installed"
    if export.difference is not None:
        agreed = f"onnxruntime's logits differ from torch's by at most {export.difference:.1g}"
    lines = [
        ("network", f"{facts.model}, epoch {facts.epoch} of {facts.run}"),
        ("input", f"images (N, {channels}, {height}, {width}), float32"),
        ("output", f"logits of {', '.join(facts.classes)}"),
        ("check", agreed),
        ("written", f"{export.file}: {size(export.bytes)}"),
    ]
    out.result(values, show=lambda: out.pairs(lines))


def mean_scores(found: Prediction) -> dict[str, float] | None:
    """Mean Dice of each label and region over the patients that are `scored`; None where there are none."""
    scores = [row["scores"] for row in found.rows if "scores" in row and not is_known(row)]
    if not scores:
        return None
    names = [f"dice_{name}" for name in STRUCTURES]
    return {name: sum(of[name] for of in scores) / len(scores) for name in names}


def _show(found: Prediction) -> None:
    out.table(cases_table(found))
    if found.facts.task == "segmentation":
        if len(found.rows) > 1 and (means := mean_scores(found)) is not None:
            dice = ", ".join(f"{name} {means[f'dice_{name}']:.3f}" for name in STRUCTURES)
            out.text(f"mean Dice of {counted(found.scored, f'{_new(found)}patient')} with labels: {dice}")
    else:
        counts = Counter(row["prediction"] for row in found.rows)
        out.text(", ".join(f"{name} {counts[name]:,}" for name in found.facts.classes))
        if found.accuracy is not None:
            of = counted(found.scored, f"{_new(found)}image")
            out.text(f"accuracy {100 * found.accuracy:.1f} % of the {of} in the folder of a class")
    for line in _known_lines(found):
        out.text(line)


def _new(found: Prediction) -> str:
    return "new " if found.scored < found.labelled else ""


def _known_lines(found: Prediction) -> list[str]:
    counts = count_known(found.rows, found.told_by)
    known = (counts["trained_on"] or 0) + (counts["validated_on"] or 0)
    if not known:
        return []
    unit, mean = ("patient", "no mean") if found.facts.task == "segmentation" else ("image", "no accuracy")
    parts = [f"{counts[key]:,} {words}" for key, words in _PARTS if counts[key]]
    return [f"known to the run: {known:,} of {counted(len(found.rows), unit)} ({', '.join(parts)}), counted in {mean}"]


def _refused(found: Prediction, unit: str) -> DataError:
    for _, reason in found.failed[:MOST_ROWS]:
        out.warning(reason)
    if len(found.failed) > MOST_ROWS:
        out.warning(f"and {len(found.failed) - MOST_ROWS} more; --json names all of them")
    total = counted(len(found.rows) + len(found.failed), unit)
    return DataError(f"{len(found.failed)} of {total} could not be read, see above; the others are in {found.output}.")
