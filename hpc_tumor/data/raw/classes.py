"""Folder names of the four classes of brain MRI images."""

from __future__ import annotations

import re

# Letters only: 512Glioma, "Glioma Tumor (2)", pituitary_adenoma, "Brain MRI - healthy", 3_no_tumor …
_FILLERS = re.compile(r"tumou?rs?|adenomas?|brains?|mris?|images?|scans?|class")
_NAMES = {
    "glioma": "glioma", "gliomas": "glioma", "meningioma": "meningioma", "meningiomas": "meningioma",
    "pituitary": "pituitary", "no": "notumor", "non": "notumor", "none": "notumor", "normal": "notumor",
    "normals": "notumor", "healthy": "notumor", "control": "notumor", "controls": "notumor",
}  # fmt: skip
# Words in the names of auxiliary folders beside the classes, whose images belong to no class.
_ASIDE = re.compile(
    r"(?:asset|demo|diagram|doc|documentation|example|fig|figure|graph|icon|logo|output|paper|plot|preview|readme"
    r"|report|result|sample|screenshot|thumb|thumbnail)s?"
)
_ASIDE_TOO = re.compile(r"(?:image|img|picture|pic|dataset)s?|data|of|the|and")
_MARKS = (
    r"(?:masks?|seg(?:m|mentation|mentations|mented)?|labels?|annot(?:ation|ations|ated)?|(?:ground[ _-]?)?truth|gt"
    r"|overlay|contours?|predict(?:ion|ed)?|heat[ _-]?map|border)"
)
_MASK_NAME = re.compile(rf"(?P<after>.+?)[ _.-]*{_MARKS}(?:[ _-]?\d+)?|{_MARKS}[ _.-]+(?P<before>.+)", re.IGNORECASE)
_MASKS = re.compile(r"mask|segment|^seg|label|annot|truth|predict|overlay|contour|heat.?map|border", re.IGNORECASE)


def class_of(folder: str) -> str | None:
    """Return the class of a folder's name (glioma_tumor, 512Glioma, no_tumor, Normal …), or None if unknown."""
    return _NAMES.get(_FILLERS.sub("", re.sub(r"[^a-z]", "", folder.lower())))


def is_of_masks(folder: str) -> bool:
    """Return True if a folder's name indicates masks or overlays rather than images."""
    return _MASKS.search(folder) is not None


def is_mask_of(stem: str) -> str | None:
    """Return the stem of the image whose mask is called `stem`, or None if `stem` is not a mask's name."""
    match = _MASK_NAME.fullmatch(stem)
    return match and (match["after"] or match["before"])


def is_aside(folder: str) -> bool:
    """Return True if a folder's name indicates figures, screenshots or similar rather than images of a class."""
    words = re.findall(r"[a-z]+", folder.lower())
    others = [word for word in words if not _ASIDE.fullmatch(word)]
    return len(others) < len(words) and all(map(_ASIDE_TOO.fullmatch, others))


def spelling_of(path: str) -> str | None:
    """Return the name of the class folder of an image, given its path below the source; None if it has none."""
    return next((folder for folder in reversed(path.split("/")[:-1]) if class_of(folder)), None)
