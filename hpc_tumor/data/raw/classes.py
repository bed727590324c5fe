"""The four classes of brain MRI images, and the folder names that stand for them."""

from __future__ import annotations

import re

# Letters only: 512Glioma, "Glioma Tumor (2)", pituitary_adenoma, "Brain MRI - healthy", 3_no_tumor …
_FILLERS = re.compile(r"tumou?rs?|adenomas?|brains?|mris?|images?|scans?|class")
_NAMES = {
    "glioma": "glioma", "gliomas": "glioma", "meningioma": "meningioma", "meningiomas": "meningioma",
    "pituitary": "pituitary", "no": "notumor", "non": "notumor", "none": "notumor", "normal": "notumor",
    "normals": "notumor", "healthy": "notumor", "control": "notumor", "controls": "notumor",
}  # fmt: skip
# Folders beside those of the classes whose pictures are of no class, as all words of their names say.
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
    """The class that a folder's name stands for: glioma_tumor, 512Glioma, no_tumor, Normal …; None where unknown."""
    return _NAMES.get(_FILLERS.sub("", re.sub(r"[^a-z]", "", folder.lower())))


def is_of_masks(folder: str) -> bool:
    """Return whether a folder, by its name, holds masks or other drawings of images rather than images."""
    return _MASKS.search(folder) is not None


def is_mask_of(stem: str) -> str | None:
    """The name of the image that another is a mask of by its own name, both without suffix; None where it is none."""
    match = _MASK_NAME.fullmatch(stem)
    return match and (match["after"] or match["before"])


def is_aside(folder: str) -> bool:
    """Return whether a folder, by its name, holds figures, screenshots and the like rather than images of a class."""
    words = re.findall(r"[a-z]+", folder.lower())
    others = [word for word in words if not _ASIDE.fullmatch(word)]
    return len(others) < len(words) and all(map(_ASIDE_TOO.fullmatch, others))
