"""Update of image stores that an earlier version converted: add patients, from the stored pixels alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hpc_tumor.data.convert.target import disk_error, identity_of, locked, make_staging
from hpc_tumor.data.convert.writers import image_fingerprint, write_patients
from hpc_tumor.data.raw.brain_mri import BrainMRIReader, head_thumbnail
from hpc_tumor.data.store.nodes import GROUP_FILE, group_json, read_attributes, write_file
from hpc_tumor.data.store.store import SINCE_2, Store, read_about

_IMAGES = 256  # read at once


@dataclass(frozen=True)
class Update:
    """Result of an update: number of images, of those of known patients, and of groups of copies before and after."""

    images: int
    known: int
    groups: tuple[int, int]

    @property
    def note(self) -> str:
        """Say in a line what has changed, and for which runs."""
        before, now = self.groups
        return (
            f"the store was brought up to date: {self.known:,} of {self.images:,} images are of known patients, and"
            f" copies are also found by the head ({before:,} groups before, {now:,} now). Its fingerprint changed:"
            " unfinished runs on it must be submitted again"
        )


def bring_up_to_date(path: Path) -> Update | None:
    """Add patients, slices, heads and copies by the head to a store of images of schema 1; None if nothing is missing.

    Each step is one rename that leaves a complete store, so the update can be interrupted at any time and repeated.
    Raises DataError if the store cannot be read or written, or is being converted.
    """
    if not _is_old(path):
        return None
    with locked(path):
        if not _is_old(path):  # another process was faster
            return None
        try:
            with make_staging(path) as staging:
                return _update(Store.open(path), staging)
        except OSError as error:
            raise disk_error(error, "the patients", path) from error


def _is_old(path: Path) -> bool:
    about = read_about(path) or {}
    return about.get("task") == "classification" and about.get("schema") == 1 and about.get("complete") is True


def _update(old: Store, staging: Path) -> Update:
    index, about = old.path / "index", old.about
    heads = np.concatenate([_heads(old, start) for start in range(0, len(old), _IMAGES)])
    patients = write_patients(staging / "index", old.thumbnails, heads, old.identical, {})
    attributes = read_attributes(index) or {}
    for name in sorted(SINCE_2):
        if (column := staging / "index" / name).is_dir():
            if (index / name).exists():  # of an interrupted update
                (index / name).rename(staging / f"old-{name}")
            column.rename(index / name)
    added = {"source": [""] * len(old), "patient": patients}
    _replace(staging, index, attributes | added)
    identity = identity_of(old.dataset, old.task, BrainMRIReader(int(old.options["size"])).options)
    columns = zip(old.paths, old.label.tolist(), old.part.tolist(), old.text_column("sha256"), strict=True)
    rows = [
        {"case": name, "class": old.classes[label], "part": part, "sha256": digest}
        for name, label, part, digest in columns
    ]
    _replace(staging, old.path, {"hpc_tumor": {**about, **identity, "fingerprint": image_fingerprint(identity, rows)}})
    groups = len(np.unique(old.group))
    shutil.rmtree(index / "group", ignore_errors=True)  # by the frame alone
    return Update(len(old), sum(map(bool, patients)), (groups, len(np.unique(Store.open(old.path).group))))


def _heads(store: Store, start: int) -> np.ndarray:
    numbers = range(start, min(start + _IMAGES, len(store)))
    return np.stack([head_thumbnail(Image.fromarray(pixels)) for pixels in store.read_images(numbers).result()])


def _replace(staging: Path, group: Path, attributes: dict[str, object]) -> None:
    write_file(staging / GROUP_FILE, group_json(attributes))
    (staging / GROUP_FILE).replace(group / GROUP_FILE)
