"""What the scores are called, in which unit they are shown, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAIN_SCORE = {"classification": "accuracy", "segmentation": "dice"}
CASES = {"classification": "images", "segmentation": "patients"}
UNITS = {"classification": "groups of copies", "segmentation": "patients"}  # what is drawn or compared independently
RIGHT_OR_WRONG = ("accuracy", "accuracy_new")  # scores that are 0 or 1 of each image
# Scores of a structure, in the order of a table; scores of classified images likewise.
OF_STRUCTURES = ("dice", "hd95", "nsd", "iou", "precision", "recall", "fpr", "fnr", "accuracy")
OF_IMAGES = (
    "accuracy", "accuracy_new", "balanced_accuracy", "f1", "mcc", "auroc", "precision", "recall", "nll", "brier",
    "ece", "confidence",
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """How a score is written: `form` is a share (0.912), percent (91.2), mm or a plain number."""

    title: str
    form: Literal["share", "percent", "mm", "number"] = "share"
    larger_is_better: bool = True

    def show(self, value: float | None) -> str:
        """The value in the form of this score; nothing for no value."""
        if value is None:
            return ""
        if self.form == "percent":
            return f"{100 * value:.1f}"
        return f"{value:.2f}" if self.form == "mm" else f"{value:.3f}"

    def between(self, low: float | None, high: float | None) -> str:
        """`0.812–0.871`; nothing where there is no such interval."""
        return "" if low is None or high is None else f"{self.show(low)}–{self.show(high)}"

    @property
    def heading(self) -> str:
        """Title with the unit."""
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
    """How `score` is written: `dice_WT` as `dice` is, with its structure in the title; anything else as a number."""
    known = _MEASURES[task]
    if score in known:
        return known[score]
    base, _, part = score.rpartition("_")
    if base not in known:
        return Measure(score.replace("_", " "), "number")
    found = known[base]
    return Measure(f"{found.title} {part}", found.form, found.larger_is_better)
