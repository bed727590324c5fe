"""Published results of the October 2024 course project, for comparison.

They are marked as published wherever they are shown, with their split: both splits leak.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedResult:
    """One published result. Scores are fractions, under the names of our own results."""

    model: str
    task: str
    dataset: str
    parameters: int
    epochs: int
    train: Mapping[str, float]
    test: Mapping[str, float]
    split: str = "published"
    split_leaks: bool = True


LEAKS = {
    "classification": (
        "Published results: October 2024 course project, Brain Tumor MRI data, published split. It leaks: 216 of its"
        " 1,311 test images are pixel-identical to a training image and 456 are near duplicates of one."
    ),
    "segmentation": (
        "Published results: October 2024 course project, BraTS 2020, last epoch, pooled per batch, on random slices of"
        " the training patients. That split leaks: not comparable with a split by patient."
    ),
}


def _classifier(model: str, parameters: int, loss: float, train: float, test: float, sure: float) -> PublishedResult:
    return PublishedResult(
        model,
        "classification",
        "Brain Tumor MRI",
        parameters,
        epochs=50,
        train={"loss": loss, "accuracy": train},
        test={"accuracy": test, "confidence": sure},
    )


def _segmenter(model: str, parameters: int, epochs: int, *scores: float) -> PublishedResult:
    names = ("dice_NCR", "dice_ED", "dice_ET", "dice", "iou", "precision", "recall")
    test = dict(zip(names, scores, strict=True))
    return PublishedResult(model, "segmentation", "BraTS 2020", parameters, epochs, train={}, test=test)


PUBLISHED: dict[str, PublishedResult] = {
    result.model: result
    for result in (
        _classifier("cnn", 3_001_156, 1.4e-3, 0.999, 0.99, 0.999),
        _classifier("alexnet", 4_589_316, 1.2e-3, 0.999, 0.90, 0.965),
        _classifier("vgg16", 65_070_916, 8.9e-6, 0.999, 0.95, 0.98),
        _classifier("vit", 21_458_436, 0.27, 0.90, 0.88, 0.93),
        _segmenter("unet", 5_496_451, 20, 0.853, 0.852, 0.878, 0.861, 0.757, 0.880, 0.845),
        _segmenter("improved-unet", 3_082_739, 20, 0.914, 0.915, 0.921, 0.917, 0.847, 0.933, 0.901),
        _segmenter("attention-unet", 3_258_263, 30, 0.920, 0.925, 0.929, 0.924, 0.860, 0.932, 0.918),
    )
}
