"""Options of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_tumor.data.editions import get_edition
from hpc_tumor.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Settings of a prediction.

    Attributes:
        batch_size: slices or images at once; None: what suits the device.
        flips: mean of the logits over the flips of a slice or image; None: as the run was tested.
        clean: without small pieces of tumour, by the thresholds of the run; None: as the run was tested. Patients only.
        probabilities: write them beside the labels. Patients only.
        labels: edition whose numbers are written, and those of segmentations whose patient's name tells none; None: in
            both that of the name, else that of the data trained on. Patients only.
    """

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    flips: bool | None = None
    clean: bool | None = None
    probabilities: bool = False
    overwrite: bool = False
    labels: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for an unknown edition."""
        if self.labels is not None:
            get_edition(self.labels)

    def check_images(self) -> None:
        """Raises UsageError for what images do not have."""
        if self.clean:
            raise UsageError("--clean is for patients: images have no small pieces to remove.")
        if self.labels is not None:
            raise UsageError("--labels is for patients: images have no labels to write.")
        if self.probabilities:
            raise UsageError(
                "--probabilities is for patients; the probabilities of images are in predictions.csv anyway."
            )
