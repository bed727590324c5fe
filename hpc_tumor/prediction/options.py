"""Options of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_tumor.data.editions import get_edition
from hpc_tumor.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Settings of a prediction.

    Attributes:
        batch_size: slices or images at once; None: by device.
        flips: average the logits over flips; None: as the run was tested.
        clean: remove small pieces of tumour by the thresholds of the run; None: as the run was tested. Patients only.
        probabilities: also write probabilities. Patients only.
        labels: edition of the label numbers to write, and of segmentations whose patient's name shows no edition; None:
            for both the edition of the name, else of the training data. Patients only.
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
        """Raise UsageError for an unknown edition."""
        if self.labels is not None:
            get_edition(self.labels)

    def check_images(self) -> None:
        """Raise UsageError for options that do not apply to images."""
        if self.clean:
            raise UsageError("--clean is for patients only: images have no pieces of tumour to remove.")
        if self.labels is not None:
            raise UsageError("--labels is for patients only: images have no labels to write.")
        if self.probabilities:
            raise UsageError("--probabilities is for patients only: predictions.csv has the probabilities of images.")
