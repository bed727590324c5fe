"""Show predictions and exports as tables and JSON."""

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

MAX_ROWS = 20  # listed individually; all are in the files
_PARTS = (("trained_on", TRAINED), ("validated_on", VALIDATED))


def show_prediction(prediction: Prediction) -> None:
    """Print a prediction. Raises DataError afterwards if some inputs could not be read."""
    for note in prediction.notes:
        out.warning(note)
    out.result(prediction_values(prediction), show=lambda: _show(prediction))
    unit = "patient" if prediction.facts.task == "segmentation" else "image"
    count = counted(len(prediction.rows), unit)
    out.note(f"\nwritten: {prediction.output} ({count} in {duration(prediction.seconds)})")
    if prediction.failed:
        raise _refused(prediction, unit)


def prediction_values(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON values."""
    facts = prediction.facts
    values: dict[str, Any] = {
        "run": facts.run, "model": facts.model, "epoch": facts.epoch, "weights_lost": facts.weights_lost,
        "task": facts.task, "device": prediction.device, "precision": prediction.precision, "output": prediction.output,
        "seconds": prediction.seconds, "labelled": prediction.labelled, "scored": prediction.scored,
        "known": count_known(prediction.rows, prediction.told_by),
    }  # fmt: skip
    if facts.task == "classification":
        values |= {"classes": facts.classes, "accuracy": prediction.accuracy}
    else:
        values["mean"] = mean_scores(prediction)
    failed = [{"case": case, "reason": reason} for case, reason in prediction.failed]
    return {**values, "predictions": prediction.rows, "failed": failed, "notes": prediction.notes}


def cases_table(prediction: Prediction) -> Table:
    """Return a table with a row per patient (volumes and Dice) or per image (class and confidence)."""
    known = Column("known", "left", cell=lambda row: row["known"] or "")
    columns = [
        Column("image", "left", cell=lambda row: row["path"]),
        Column("prediction", "left", cell=lambda row: row["prediction"]),
        Column("confidence", cell=lambda row: f"{100 * row['confidence']:.1f} %"),
        Column("label", "left", cell=lambda row: row.get("label") or ""),
        known,
    ]
    if prediction.facts.task == "segmentation":
        columns = [
            Column("patient", "left", cell=lambda row: row["case"]),
            *map(_volume, prediction.facts.classes),
            *map(_dice, STRUCTURES),
            known,
            Column("time", keep=1, cell=lambda row: duration(row["seconds"])),
        ]
    more, facts = len(prediction.rows) - MAX_ROWS, prediction.facts
    notes = [f"and {more:,} more: --json and the files list all"] if more > 0 else []
    title = f"{facts.model}, epoch {facts.epoch} of {facts.run} · {prediction.device}, {prediction.precision}"
    return fill(title, columns, prediction.rows[:MAX_ROWS], notes, NOTHING)


def _volume(label: str) -> Column:
    return Column(f"{label} ml", cell=lambda row: f"{row[f'ml_{label}']:.1f}")


def _dice(name: str) -> Column:
    title = f"Dice {name}" if name == STRUCTURES[0] else name
    return Column(title, cell=lambda row: f"{row['scores'][f'dice_{name}']:.3f}" if "scores" in row else "")


def show_export(export: Export) -> None:
    """Print an export."""
    facts, (channels, height, width) = export.facts, export.shape
    values = {
        "file": export.file, "bytes": export.bytes, "run": facts.run, "model": facts.model, "epoch": facts.epoch,
        "weights_lost": facts.weights_lost, "input": ["N", channels, height, width], "difference": export.difference,
    }  # fmt: skip
    for note in facts.notes:
        out.warning(note)
    check = "not compared with torch: onnxruntime is not installed"
    if export.difference is not None:
        check = f"logits of onnxruntime and torch differ by at most {export.difference:.1g}"
    lines = [
        ("network", f"{facts.model}, epoch {facts.epoch} of {facts.run}"),
        ("input", f"images (N, {channels}, {height}, {width}), float32"),
        ("output", f"logits of {', '.join(facts.classes)}"),
        ("check", check),
        ("written", f"{export.file}: {size(export.bytes)}"),
    ]
    out.result(values, show=lambda: out.pairs(lines))


def mean_scores(prediction: Prediction) -> dict[str, float] | None:
    """Return the mean Dice of each label and region over the scored patients, or None if there are none."""
    scores = [row["scores"] for row in prediction.rows if "scores" in row and not is_known(row)]
    if not scores:
        return None
    names = [f"dice_{name}" for name in STRUCTURES]
    return {name: sum(of[name] for of in scores) / len(scores) for name in names}


def _show(prediction: Prediction) -> None:
    out.table(cases_table(prediction))
    if prediction.facts.task == "segmentation":
        if len(prediction.rows) > 1 and (means := mean_scores(prediction)) is not None:
            dice = ", ".join(f"{name} {means[f'dice_{name}']:.3f}" for name in STRUCTURES)
            out.text(f"mean Dice of {counted(prediction.scored, f'{_new(prediction)}patient')} with labels: {dice}")
    else:
        counts = Counter(row["prediction"] for row in prediction.rows)
        out.text(", ".join(f"{name} {counts[name]:,}" for name in prediction.facts.classes))
        if prediction.accuracy is not None:
            of = counted(prediction.scored, f"{_new(prediction)}image")
            out.text(f"accuracy {100 * prediction.accuracy:.1f} % of the {of} in the folder of a class")
    for line in _known_lines(prediction):
        out.text(line)


def _new(prediction: Prediction) -> str:
    return "new " if prediction.scored < prediction.labelled else ""


def _known_lines(prediction: Prediction) -> list[str]:
    counts = count_known(prediction.rows, prediction.told_by)
    known = (counts["trained_on"] or 0) + (counts["validated_on"] or 0)
    if not known:
        return []
    unit, mean = ("patient", "the means") if prediction.facts.task == "segmentation" else ("image", "the accuracy")
    parts = [f"{counts[key]:,} {words}" for key, words in _PARTS if counts[key]]
    seen = f"{known:,} of {counted(len(prediction.rows), unit)} ({', '.join(parts)})"
    return [f"seen in training: {seen}, excluded from {mean}"]


def _refused(prediction: Prediction, unit: str) -> DataError:
    for _, reason in prediction.failed[:MAX_ROWS]:
        out.warning(reason)
    if len(prediction.failed) > MAX_ROWS:
        out.warning(f"and {len(prediction.failed) - MAX_ROWS} more; --json lists all")
    total = counted(len(prediction.rows) + len(prediction.failed), unit)
    return DataError(
        f"{len(prediction.failed)} of {total} could not be read, see above; the others are in {prediction.output}."
    )
