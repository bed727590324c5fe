"""Known patients, label conflicts and closest pairs in an audit of a few real images."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from earlier_stores import make_schema_1
from raw_samples import real_data

from hpc_tumor import cli
from hpc_tumor.data.audit.audit import Audit, audit_store
from hpc_tumor.data.audit.page import render_page
from hpc_tumor.data.audit.text import as_json, fact_lines, patient_table
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.splits.near_duplicates import features, similarity
from hpc_tumor.data.splits.splits import make_split
from hpc_tumor.data.store.store import Store
from hpc_tumor.experiments.request import experiment_for

CONFLICT = "Training/pituitary/Tr-pi_0520.jpg"  # slice 230 of the Cheng set, a meningioma

ONE_PATIENT = ("Testing/pituitary/Te-pi_0264.jpg", "Training/pituitary/Tr-pi_0249.jpg")  # similar slices


def audited(path: Path) -> tuple[Store, Audit]:
    store = Store.open(path)
    return store, audit_store(store, experiment_for(store, ["split=deduplicated"]))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve real images of each class and part, one filed under a wrong class, and two of one patient."""
    raw = copy_images(tmp_path_factory.mktemp("few") / "raw", 12)
    for path in (CONFLICT, *ONE_PATIENT):
        shutil.copy(real_data("brain-mri") / path, raw / path)
    return converted(raw)


def copy_images(raw: Path, count: int) -> Path:
    """Copy the first real images of each class and part."""
    source = real_data("brain-mri")
    for folder in sorted(source.glob("*/*")):
        (raw / folder.relative_to(source)).mkdir(parents=True)
        for path in sorted(folder.glob("*.jpg"))[:count]:
            shutil.copy(path, raw / path.relative_to(source))
    return raw


def converted(raw: Path) -> Path:
    prepare_dataset(BrainMRIReader(size=64), raw, raw.parent / "s.zarr", workers=1)
    return raw.parent / "s.zarr"


def test_known_patients_are_counted_by_class_and_part(few: Path) -> None:
    """As counted from the list of slices and patients that the images were matched to by hand."""
    store, audit = audited(few)
    with (real_data("cheng") / "expected-in-brain-mri-sample.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    path_key = next(key for key in rows[0] if rows[0][key].startswith(("Training", "Testing")))
    matched = {row[path_key] for row in rows}
    expected = Counter((path.split("/")[1], path.split("/")[0]) for path in store.paths if path in matched)
    by_class = {row.name: row for row in audit.patients}
    for name in store.classes:
        found = by_class[name]
        assert found.train == (expected[name, "Training"], int(((store.part == "train") & _of(store, name)).sum()))
        assert found.test == (expected[name, "Testing"], int(((store.part == "test") & _of(store, name)).sum()))
        assert found.known == found.train[0] + found.test[0]
    everything = by_class["all"]
    assert (everything.images, everything.known) == (len(store), sum(expected.values()))
    assert everything.patients == len(set(store.patients) - {""})
    parts = [
        {p for p, part in zip(store.patients, store.part, strict=True) if p and part == one}
        for one in ("train", "test")
    ]
    assert everything.shared == len(parts[0] & parts[1])
    known = dict(fact_lines(audit))["patients"]
    assert known == f"{everything.known} of {len(store)} images show {everything.patients} known patients"
    assert len(patient_table(audit).rows) == 5


def _of(store: Store, name: str) -> np.ndarray:
    return store.label == store.classes.index(name)


def test_a_class_that_the_cheng_set_contradicts_is_shown(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, audit = audited(few)
    (conflict,) = audit.conflicts
    assert (conflict.path, conflict.filed, conflict.slice, conflict.contrary, conflict.copy) == (
        CONFLICT, "pituitary", 230, "meningioma", None,
    )  # fmt: skip
    page = render_page(audit, store)
    section = page[page.index("<h2>Label conflicts") :].split("</section>")[0]
    assert section.count("<img ") == 2
    assert "filed as pituitary" in section
    assert "slice 230 of the Cheng set: meningioma" in section
    assert json.loads(json.dumps(as_json(audit)))["conflicts"][0]["contrary"] == "meningioma"
    assert cli.main(["audit", str(few)]) == 0
    said = capsys.readouterr().out
    assert f"{CONFLICT}  pituitary  slice 230 of the Cheng set: meningioma" in said
    assert "1 image of a class that a copy or a known slice contradicts, listed below" in said


def test_a_copy_under_another_class_is_shown_beside_it(tmp_path: Path) -> None:
    """Of images that are not of the Cheng set, whose right class nothing tells."""
    root = copy_images(tmp_path / "raw", 4)
    first_path = next((root / "Training/notumor").glob("*.jpg")).relative_to(root).as_posix()
    shutil.copy(root / first_path, root / "Training/glioma/stray.jpg")
    store, audit = audited(converted(root))
    first, second = audit.conflicts
    assert (first.path, first.filed, first.contrary, first.copy) == (
        "Training/glioma/stray.jpg", "glioma", "notumor", first_path,
    )  # fmt: skip
    assert (second.path, second.copy, second.slice) == (first.copy, first.path, 0)
    page = render_page(audit, store)
    section = page[page.index("<h2>Label conflicts") :].split("</section>")[0]
    assert section.count("<img ") == 4


def test_the_closest_pairs_are_shown_and_no_copy_is_ruled_out(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, audit = audited(few)
    assert cli.main(["audit", str(few), "--split", "deduplicated"]) == 3  # leaks by patient
    said = capsys.readouterr().out
    page = render_page(audit, store)
    assert "no copies found in two parts" in said
    assert "the closest pairs are below" in said
    assert "Closest pairs across the parts" in said
    assert "No measure finds every copy" in page
    (patient,) = {store.patients[store.paths.index(path)] for path in ONE_PATIENT}
    assert (audit.in_use.closest[0].test, audit.in_use.closest[0].nearest) == ONE_PATIENT
    assert f"both of patient {patient}" in page
    found = [pair.similarity for pair in audit.in_use.closest]
    assert found == sorted(found, reverse=True)
    split = make_split(store, "deduplicated", 0)
    known = np.concatenate([split.train, split.val])
    frames, heads = (
        similarity(features(small[split.test]), features(small[known])).max(axis=1)
        for small in (store.thumbnails, store.heads)
    )
    assert found == pytest.approx(sorted(np.maximum(frames, heads).tolist(), reverse=True)[:12])
    assert all(f"{value:.4f}" in page for value in found)


def test_a_store_of_an_earlier_version_is_audited_without_patients(few: Path, tmp_path: Path) -> None:
    path = shutil.copytree(few, tmp_path / "old.zarr")
    make_schema_1(path)
    store, audit = audited(path)
    assert audit.patients == ()
    known = dict(fact_lines(audit))["patients"]
    assert known.endswith(f"earlier version; bring it up to date: hpc-tumor patients {path}")
    assert audit.in_use.shortcuts.keys() == {"file_facts", "intensities"}
    assert "patients unknown" in render_page(audit, store)
