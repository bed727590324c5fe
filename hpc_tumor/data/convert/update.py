"""Update of image stores that an earlier version converted: add patients, from the stored pixels alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpc_tumor.data.convert.target import disk_error, identity_of, locked, make_staging
from hpc_tumor.data.convert.writers import image_fingerprint, write_patients
from hpc_tumor.data.patients.recognise import recognise
from hpc_tumor.data.raw.brain_mri import BrainMRIReader, head_thumbnail
from hpc_tumor.data.store.nodes import GROUP_FILE, group_json, read_attributes, write_file
from hpc_tumor.data.store.store import SINCE_2, Store, read_about
from hpc_tumor.errors import DataError, StoreError

_IMAGES = 256  # read at once
_GROUPS = "index/group"  # copies by the frame alone; schema 2 has another name for its own


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
            " collect shows earlier runs on it apart, and unfinished ones must be submitted again"
        )


def bring_up_to_date(path: Path) -> Update | None:
    """Add patients, slices, heads and copies by the head to a store of images of schema 1; None if nothing is missing.

    Each step is one rename that leaves a complete store, so the update can be interrupted at any time and repeated.
    Raises DataError if the store cannot be read or written, or is being converted; it is unchanged then.
    """
    if not _has_schema(path, 1):
        _remove_rest(path)
        return None
    if not os.access(path, os.W_OK | os.X_OK):
        way = f"Copy it to where you can write, then: hpc-tumor patients COPY. Or ask its owner to update {path}."
        raise StoreError(f"{path} was converted by an earlier version, and you cannot write to it", way)
    with locked(path):
        if not _has_schema(path, 1):  # another process was faster
            return None
        try:
            with make_staging(path) as staging:
                return _update(Store.open(path), staging)
        except OSError as error:
            raise disk_error(error, "the patients", path) from error


def _has_schema(path: Path, schema: int) -> bool:
    about = read_about(path) or {}
    return (about.get("task"), about.get("schema"), about.get("complete")) == ("classification", schema, True)


def _remove_rest(path: Path) -> None:
    """Remove the groups of schema 1 after an update that was killed at its very end."""
    if (path / _GROUPS).is_dir() and _has_schema(path, 2):
        with suppress(DataError, OSError), locked(path), make_staging(path) as staging:
            (path / _GROUPS).rename(staging / "old-group")


def _update(old: Store, staging: Path) -> Update:
    index, attributes = old.path / "index", read_attributes(old.path / "index") or {}
    groups, heads = len(np.unique(old.group)), _heads(old)
    patients = write_patients(
        staging / "index", recognise(old.thumbnails, heads), old.thumbnails, heads, old.identical, {}
    )
    about = {**old.about, **identity_of(old.dataset, old.task, {**old.options, **_measures()})}
    about["fingerprint"] = _fingerprint(old, about)
    # From here on, the store changes; a reader of schema 1 sees nothing of it before the last step.
    for name in sorted(SINCE_2):
        if (column := staging / "index" / name).is_dir():
            if (index / name).exists():  # of an interrupted update
                (index / name).rename(staging / f"old-{name}")
            column.rename(index / name)
    _replace(staging, index, {**attributes, "source": [""] * len(old), "patient": patients})
    _replace(staging, old.path, {"hpc_tumor": about})
    with suppress(OSError):
        (old.path / _GROUPS).rename(staging / "old-group")
    return Update(len(old), sum(map(bool, patients)), (groups, len(np.unique(Store.open(old.path).group))))


def _measures() -> dict[str, str]:
    """Return the options of a conversion that say how copies and patients are found."""
    return {name: BrainMRIReader().options[name] for name in ("near_duplicates", "patients")}


def _heads(store: Store) -> NDArray[np.uint8]:
    """Return `(n, 32, 32)` thumbnails of the head, as a conversion makes them."""
    heads = []
    for start in range(0, len(store), _IMAGES):
        images = store.read_images(range(start, min(start + _IMAGES, len(store)))).result()
        heads += [head_thumbnail(Image.fromarray(pixels)) for pixels in images]
    return np.stack(heads)


def _fingerprint(store: Store, about: Mapping[str, Any]) -> str:
    identity = {name: about[name] for name in ("schema", "dataset", "task", "options")}
    columns = zip(store.paths, store.label.tolist(), store.part.tolist(), store.text_column("sha256"), strict=True)
    rows = [
        {"case": name, "class": store.classes[label], "part": part, "sha256": digest}
        for name, label, part, digest in columns
    ]
    return image_fingerprint(identity, rows)


def _replace(staging: Path, group: Path, attributes: dict[str, object]) -> None:
    write_file(staging / GROUP_FILE, group_json(attributes))
    (staging / GROUP_FILE).replace(group / GROUP_FILE)
