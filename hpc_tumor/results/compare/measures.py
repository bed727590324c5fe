"""Names, units and direction of the scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

MAIN_SCORE = {"classification": "accuracy", "segmentation": "dice"}
CASES = {"classification": "images", "segmentation": "patients"}
# Units of resampling and tests; those of images depend on whether the runs recorded patients.
COPIES, PATIENTS = "duplicate groups", "patients"
# Scores other than accuracy of some predictions, as prefixes: on images of known patients, of decisions per patient.
KNOWN, DECISION = "known_", "patient_"
RIGHT_OR_WRONG = ("accuracy", "accuracy_new", "accuracy_known", "accuracy_patients")  # 0 or 1 for each image or patient
# Scores of a structure and of classified images, in the order of a table.
OF_STRUCTURES = ("dice", "hd95", "nsd", "iou", "precision", "recall", "fpr", "fnr", "accuracy")
OF_IMAGES = (
    "accuracy", "accuracy_new", "accuracy_known", "accuracy_patients", "balanced_accuracy", "f1", "mcc", "auroc",
    "precision", "recall", "nll", "brier", "ece", "confidence",
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """Format of a score: `form` is a share (0.912), percent (91.2), mm or a plain number."""

    title: str
    form: Literal["share", "percent", "mm", "number"] = "share"
    larger_is_better: bool = True

    def show(self, value: float | None) -> str:
        """Format a value; empty for None."""
        if value is None:
            return ""
        if self.form == "percent":
            return f"{100 * value:.1f}"
        return f"{value:.2f}" if self.form == "mm" else f"{value:.3f}"

    def between(self, low: float | None, high: float | None) -> str:
        """Format an interval, such as `0.812–0.871`; empty if it is unknown."""
        return "" if low is None or high is None else f"{self.show(low)}–{self.show(high)}"

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return {"percent": f"{self.title} %", "mm": f"{self.title}, mm"}.get(self.form, self.title)


_MEASURES = {
    "segmentation": {
        "dice": Measure("Dice"),
        "hd95": Measure("HD95", "mm", False),
        "nsd": Measure("NSD"),
        "iou": Measure("IoU"),
        "precision": Measure("precision"),
        "recall": Measure("recall"),
        "fpr": Measure("FPR", larger_is_better=False),
        "fnr": Measure("FNR", larger_is_better=False),
        "accuracy": Measure("accuracy"),
        "loss": Measure("loss", "number", False),
    },
    "classification": {
        "accuracy": Measure("accuracy", "percent"),
        "accuracy_new": Measure("accuracy, new images", "percent"),
        "accuracy_known": Measure("accuracy, known patients", "percent"),
        "accuracy_patients": Measure("accuracy by patient", "percent"),
        "balanced_accuracy": Measure("balanced accuracy", "percent"),
        "precision": Measure("precision", "percent"),
        "recall": Measure("recall", "percent"),
        "f1": Measure("F1", "percent"),
        "mcc": Measure("MCC"),
        "auroc": Measure("AUROC"),
        "ece": Measure("ECE", larger_is_better=False),
        "nll": Measure("NLL", "number", False),
        "brier": Measure("Brier", "number", False),
        "confidence": Measure("confidence", "percent"),
        "loss": Measure("loss", "number", False),
    },
}


def measure(task: str, score: str) -> Measure:
    """Return the measure of a score: `dice_WT` is `dice` with its structure in the title, others are numbers."""
    known = _MEASURES[task]
    if score in known:
        return known[score]
    for prefix, words in ((KNOWN, ", known patients"), (DECISION, " per patient")):
        if task == "classification" and score.startswith(prefix):
            whole = measure(task, score.removeprefix(prefix))
            return replace(whole, title=f"{whole.title}{words}")
    base, _, part = score.rpartition("_")
    if base not in known:
        return Measure(score.replace("_", " "), "number")
    base_measure = known[base]
    return Measure(f"{base_measure.title} {part}", base_measure.form, base_measure.larger_is_better)
