"""The four classes of brain MRI images, and the folder names that stand for them."""

from __future__ import annotations

import re

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
# Letters only: 512Glioma, "Glioma Tumor (2)", pituitary_adenoma, "Brain MRI - healthy", 3_no_tumor …
_FILLERS = re.compile(r"tumou?rs?|adenomas?|brains?|mris?|images?|scans?|class")
_NAMES = {
    "glioma": "glioma", "gliomas": "glioma", "meningioma": "meningioma", "meningiomas": "meningioma",
    "pituitary": "pituitary", "no": "notumor", "non": "notumor", "none": "notumor", "normal": "notumor",
    "normals": "notumor", "healthy": "notumor", "control": "notumor", "controls": "notumor",
}  # fmt: skip
_MASKS = re.compile(r"mask|segment|^seg|label|annot|truth|predict|overlay|contour|heat.?map|border", re.IGNORECASE)


def class_of(folder: str) -> str | None:
    """The class that a folder's name stands for: glioma_tumor, 512Glioma, no_tumor, Normal …; None where unknown."""
    return _NAMES.get(_FILLERS.sub("", re.sub(r"[^a-z]", "", folder.lower())))


def is_of_masks(folder: str) -> bool:
    """Return whether a folder, by its name, holds masks or other drawings of images rather than images."""
    return _MASKS.search(folder) is not None
