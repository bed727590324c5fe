"""How somebody wants a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_tumor.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Settings of a prediction.

    Attributes:
        batch_size: slices or images at once; None: what suits the device.
        flips: mean over the four ways to flip a slice. Patients only.
        probabilities: write them beside the labels. Patients only.
    """

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    flips: bool = False
    probabilities: bool = False
    overwrite: bool = False

    def check_images(self) -> None:
        """Raises UsageError for what images do not have."""
        for name, given in (("--flips", self.flips), ("--probabilities", self.probabilities)):
            if given:
                raise UsageError(f"{name} is for patients; the probabilities of images are in predictions.csv anyway.")
