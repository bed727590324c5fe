"""An audit says what is true of a store: planted duplicates, shortcuts and leaks are found, and nothing else is."""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from raw_samples import SHAPE, picture, real_data, tree, tumour, write_case, write_patients, write_pictures

from hpc_tumor import cli
from hpc_tumor.cli.views.audit import leak_error
from hpc_tumor.data.audit.audit import Audit, audit_store
from hpc_tumor.data.audit.images import ImageFacts, shrink, unit_rows
from hpc_tumor.data.audit.leakage import case_leakage
from hpc_tumor.data.audit.memoriser import nearest
from hpc_tumor.data.audit.page import render_page, write_page
from hpc_tumor.data.audit.shortcuts import cross_validate
from hpc_tumor.data.audit.text import as_json, class_table, fact_lines, verdict
from hpc_tumor.data.audit.volumes import Outlier, VolumeFacts, find_outliers, spread
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.splits.splits import Split
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, HpcTumorError
from hpc_tumor.experiments.request import experiment_for
from hpc_tumor.system import atomic
from hpc_tumor.table import NOTHING


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path / "configuration"))


def audited(path: Path, *settings: str) -> Audit:
    store = Store.open(path)
    return audit_store(store, experiment_for(store, list(settings)))


def image_store(root: Path) -> Path:
    prepare_dataset(BrainMRIReader(size=64), root, root.parent / "images.zarr", workers=1)
    return root.parent / "images.zarr"


def patient_store(root: Path) -> Path:
    prepare_dataset(BraTSReader(), root, root.parent / "patients.zarr", workers=1)
    return root.parent / "patients.zarr"


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures, of which the first test picture of each class repeats the first training one."""
    return image_store(write_pictures(tmp_path_factory.mktemp("twins") / "raw"))


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients, the fifth a copy of the first under another name, the sixth without ET."""
    root = write_patients(tmp_path_factory.mktemp("patients") / "raw", 4)
    write_case(root / "BraTS20_Training_005", seed=1)
    write_case(root / "BraTS20_Training_006", seed=6, labels=tumour(enhancing=1))
    return patient_store(root)


# -- images -----------------------------------------------------------------------------------------------------------


def test_planted_twins_are_found_and_no_others(twins: Path) -> None:
    audit = audited(twins)
    for kind in audit.duplicates:
        assert (len(kind.members), kind.images) == (4, 8)
        assert (kind.train, kind.test, kind.across, kind.disagreeing) == (0, 0, 4, ())
        assert ("Testing/glioma/Te-gl (0).png", "Training/glioma/Tr-gl (0).png") in kind.members
    by_name = {split.name: split for split in audit.splits}
    published, used = by_name["published"], audit.in_use
    assert published.leakage is not None
    assert used.leakage is not None
    assert (published.leakage.shared, published.leakage.identical, published.leakage.tested) == (4, 4, 12)
    assert (used.name, used.leakage.shared, used.leakage.val_shared) == ("by-patient", 0, 0)
    assert published.leaks
    assert not used.leaks
    assert published.memoriser is not None
    assert published.memoriser.similar == 4


def test_twins_of_different_classes_are_named(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "raw", twins=False)
    shutil.copy(root / "Training/glioma/Tr-gl (0).png", root / "Training/notumor/stray.png")
    identical, near = audited(image_store(root)).duplicates
    assert (identical.train, identical.test, identical.across) == (1, 0, 0)
    assert near.disagreeing == (("Training/glioma/Tr-gl (0).png", "Training/notumor/stray.png"),)


def colored(tmp_path: Path, classes: tuple[str, ...]) -> Path:
    """Pictures of which those of the named classes are RGB."""
    root = write_pictures(tmp_path / "raw", 6, twins=False)
    for name in classes:
        for path in root.glob(f"*/{name}/*.png"):
            Image.open(path).convert("RGB").save(path)
    return image_store(root)


def test_a_mode_that_goes_with_the_class_is_reported(tmp_path: Path) -> None:
    """RGB are notumor and pituitary alone: of four classes the mode leaves two, so that half can be guessed."""
    audit = audited(colored(tmp_path, ("notumor", "pituitary")))
    mode = next(item for item in audit.shortcuts if item.name == "mode")
    assert mode.notable
    assert mode.majority == 0.25
    assert 0.35 < mode.accuracy <= 0.5
    facts = audit.facts
    assert isinstance(facts, ImageFacts)
    assert [item.modes for item in facts.classes] == [{"L": 12}, {"L": 12}, {"RGB": 12}, {"RGB": 12}]


def test_facts_that_say_nothing_are_not_reported(tmp_path: Path) -> None:
    shortcuts = audited(colored(tmp_path, ())).shortcuts
    assert {item.name for item in shortcuts if item.notable} <= {"file size", "all of these"}
    assert next(item for item in shortcuts if item.name == "mode").accuracy <= 0.25


@pytest.mark.slow
def test_real_images(tmp_path: Path) -> None:
    """31 of the 224 sample test images are pixel-identical to a training image; the memoriser two ways."""
    prepare_dataset(BrainMRIReader(), real_data("brain-mri"), tmp_path / "s.zarr", workers=1)
    before = tree(tmp_path / "s.zarr")
    audit = audited(tmp_path / "s.zarr", "split=published")
    assert tree(tmp_path / "s.zarr") == before
    used = audit.in_use
    assert used.leakage is not None
    assert (used.leakage.tested, used.leakage.identical) == (224, 31)
    assert used.leakage.shared >= 31
    clean = next(split for split in audit.splits if split.name == "deduplicated")
    assert clean.leakage is not None
    assert (clean.leakage.tested, clean.leakage.identical, clean.leakage.shared) == (224, 0, 0)
    assert next(item for item in audit.shortcuts if item.name == "mode").notable

    store = Store.open(tmp_path / "s.zarr")
    pixels = store.read_images(np.arange(len(store))).result()
    small = np.stack([Image.fromarray(image).resize((32, 32), Image.Resampling.BOX) for image in pixels])
    rows = small.reshape(len(small), -1).astype(np.float64)
    test, known = np.flatnonzero(store.part == "test"), np.flatnonzero(store.part == "train")
    table = np.corrcoef(rows)[np.ix_(test, known)]
    right = store.label[known[table.argmax(axis=1)]] == store.label[test]
    assert used.memoriser is not None
    assert used.memoriser.score == pytest.approx(right.mean(), abs=2 / 224)
    assert used.memoriser.similar == pytest.approx((table.max(axis=1) >= 0.999).sum(), abs=1)
    assert clean.memoriser is not None
    assert used.memoriser.score > clean.memoriser.score


# -- patients ---------------------------------------------------------------------------------------------------------


def test_patients_are_measured(patients: Path) -> None:
    """One voxel of these patients is 1 mm³: 11 of NCR/NET, 36 of ED and 1 of ET."""
    facts = audited(patients).facts
    assert isinstance(facts, VolumeFacts)
    assert facts.volumes["BraTS20_Training_002"] == pytest.approx((0.011, 0.036, 0.001))
    assert facts.volumes["BraTS20_Training_006"] == pytest.approx((0.012, 0.036, 0))
    assert facts.labels[2].without == ("BraTS20_Training_006",)
    assert facts.shapes == {" × ".join(map(str, SHAPE[::-1])): 6}
    assert (facts.tumour_slices.low, facts.tumour_slices.high, facts.slices) == (2, 2, 6 * SHAPE[2])
    assert sum(item.share for item in facts.labels) == pytest.approx(1)
    store = Store.open(patients)
    values = np.concatenate([store.read_volume(case).result()[0][0].ravel() for case in range(6)])
    assert (facts.modalities[0].low, facts.modalities[0].high) == (values.min(), values.max())


def test_one_patient_under_two_ids_is_found(patients: Path) -> None:
    audit = audited(patients)
    pair = ("BraTS20_Training_001", "BraTS20_Training_005")
    assert [(kind.kind, kind.members) for kind in audit.duplicates] == [
        ("the same scans", (pair,)),
    ]
    assert not any(split.leaks for split in audit.splits if split.kind == "by-patient")
    store = Store.open(patients)
    apart = Split("by-hand", 0, None, np.array([0, 1]), np.array([2]), np.array([3, 4]), leaks=False)
    found = case_leakage(store, apart, np.array([0, 1, 2, 3, 0, 5]), 1.0)
    assert (found.tested, found.shared, found.val_shared) == (2, 1, 0)
    assert (found.slices, found.neighbours) == (2 * SHAPE[2], SHAPE[2])


def test_published_slices_have_neighbours_in_training(patients: Path) -> None:
    audit = audited(patients, "split=published", "slices=1.0")
    found = audit.in_use.leakage
    assert audit.in_use.leaks
    assert found is not None
    assert found.shared == found.tested > 0
    store, draw = Store.open(patients), np.random.default_rng(3)
    for _ in range(5):
        pairs = np.array([(case, z) for case in range(6) for z in range(SHAPE[2])])
        draw.shuffle(pairs)
        split = Split("published", 0, None, pairs[:12], pairs[12:14], pairs[14:], leaks=True)
        known = {tuple(pair) for pair in pairs[:14].tolist()}
        near = sum(any((case, z + d) in known for d in (-1, 0, 1)) for case, z in pairs[14:].tolist())
        assert case_leakage(store, split, np.arange(6), 1.0).neighbours == near


@pytest.mark.slow
def test_real_patients_are_remembered_when_slices_are_drawn(tmp_path: Path) -> None:
    """Neighbouring slices of one patient answer for each other; those of another patient do not."""
    prepare_dataset(BraTSReader(), real_data("brats"), tmp_path / "s.zarr", workers=1)
    audit = audited(tmp_path / "s.zarr")
    scores = {split.name: split.memoriser.score for split in audit.splits if split.memoriser}
    assert scores["published"] > 0.7
    assert scores["by-patient"] < 0.1
    refused = [split.refused for split in audit.splits if split.fold is not None]
    assert len(refused) == 5
    assert all("2 cases: 5 folds need at least 5" in str(reason) for reason in refused)


def test_outliers() -> None:
    """The modified z-score of 50 among 1 to 9: 0.6745 × (50 − 5.5) / 2.5."""
    values = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 50.0])
    (found,) = find_outliers([f"case {i}" for i in range(10)], {"size": values, "same": np.ones(10)})
    assert (found.case, found.what, found.value) == ("case 9", "size", 50)
    assert found.score == pytest.approx(0.6745 * 44.5 / 2.5)
    assert find_outliers(["a", "b"], {"size": np.array([1, 100.0])}) == ()


# -- the parts --------------------------------------------------------------------------------------------------------


def test_shrinking_keeps_the_mean() -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 40, 60)).astype(np.uint8)
    assert shrink(images, 20) == pytest.approx(images.reshape(3, 20, 2, 20, 3).mean(axis=(2, 4)), rel=1e-5)
    assert shrink(images, 17).mean(axis=(1, 2)) == pytest.approx(images.mean(axis=(1, 2)), rel=1e-5)


def test_nearest_is_the_most_correlated() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(700, 9)), draw.normal(size=(30, 9))
    place, value = nearest(unit_rows(a.astype(np.float32)), unit_rows(b.astype(np.float32)))
    table = np.corrcoef(a, b)[:700, 700:]
    assert (place == table.argmax(axis=1)).all()
    assert value == pytest.approx(table.max(axis=1), abs=1e-5)
    assert not unit_rows(np.full((1, 9), 7, np.float32)).any()


def test_a_tree_finds_what_is_there_and_nothing_in_noise() -> None:
    draw = np.random.default_rng(2)
    label = draw.integers(0, 3, 600)
    fold = np.arange(600) % 5
    noise = draw.normal(size=(600, 2))
    planted = np.column_stack([noise, np.where(label == 1, 5.0, draw.normal(size=600))])
    expected = (label == 1).mean() + (label != 1).mean() / 2  # which of the other two stays a guess
    assert cross_validate(planted, label, fold) == pytest.approx(expected, abs=0.07)
    assert cross_validate(noise, label, fold) == pytest.approx(1 / 3, abs=0.07)


# -- the page and the command -----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags close, and collects the pictures."""

    VOID = ("meta", "img", "rect", "line", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag not in self.VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", ["twins", "patients"])
def test_the_page_stands_alone(kind: str, request: pytest.FixtureRequest) -> None:
    store = Store.open(request.getfixturevalue(kind))
    html = render_page(audit_store(store, experiment_for(store, [])), store)
    page = Page(html)
    assert len(page.pictures) > 10
    assert all(picture["alt"] and str(picture["src"]).startswith("data:image/") for picture in page.pictures)
    assert not re.search(r"https?://|<script|<link", re.sub(r'src="data:[^"]*"', "", html))
    assert "LEAKS" in page.text
    assert ("no leak found" if kind == "twins" else "does not leak") in page.text


def test_what_is_unusual_in_patients_is_told(patients: Path) -> None:
    store = Store.open(patients)
    audit = audit_store(store, experiment_for(store, []))
    assert isinstance(audit.facts, VolumeFacts)
    unusual = {
        "outliers": (Outlier("case 9", "volume of ET", 50.0, 12.006),), "empty_masks": ("case 1", "case 2"),
        "other_affine": {"case 3": ("T1", "T2")},
        "clinical": {"grade": {"HGG": 3}, "age": spread([40.0, 60.0, 70.5]), "alive": 2},
    }  # fmt: skip
    audit = replace(audit, facts=replace(audit.facts, **unusual))
    lines = dict(fact_lines(audit))
    assert lines["empty masks"] == "case 1, case 2"
    assert lines["shifted files"] == "case 3 (T1, T2)"
    assert lines["outliers"].startswith("case 9 (volume of ET, z +12.0); |z| over ")
    assert {"HGG (3)", "2"} <= set(lines.values())
    assert any("median 60" in line and "known of 3" in line for line in lines.values())
    text = Page(render_page(audit, store)).text
    assert "Outliers" in text
    assert "volume of ET" in text


def test_classes_and_blank_images(twins: Path) -> None:
    audit = audited(twins)
    assert isinstance(audit.facts, ImageFacts)
    first, *rest = audit.facts.classes
    facts = replace(audit.facts, blank=("a.png", "b.png"), classes=(replace(first, modes={}), *rest))
    assert dict(fact_lines(replace(audit, facts=facts)))["blank"] == "a.png, b.png"
    assert NOTHING in class_table(facts).rows[0]
    assert NOTHING not in class_table(facts).rows[1]


def test_no_spread_of_no_values() -> None:
    assert spread([]).n == 0
    assert np.isnan(spread([]).median)


def test_verdicts_of_splits(patients: Path, twins: Path) -> None:
    for path, words in ((patients, "1 validation patients are also in"), (twins, "but of 1 validation image")):
        split = audited(path).in_use
        assert split.leakage is not None
        images = split.leakage.images and replace(split.leakage.images, val_copies=1)
        shared = replace(split, leakage=replace(split.leakage, val_shared=1, images=images))
        assert verdict(shared).startswith("LEAKS")
        assert words in verdict(shared)
    refused = replace(split, leakage=None, refused="5 folds need at least 5.")
    error = leak_error(replace(audited(twins), splits=(refused,)))
    assert str(error).endswith("split cannot be made: 5 folds need at least 5.")


def test_a_page_that_the_disk_does_not_take(twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "write_text", MagicMock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(HpcTumorError, match=r"audit\.html could not be written .*the disk is full"):
        write_page(audited(twins), Store.open(twins), tmp_path / "audit.html")


def test_names_are_escaped(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "raw")
    name = "<b onclick='x'>&\"{{ 7 * 7 }}.png"
    for part in ("Training", "Testing"):
        picture(9).save(root / part / "glioma" / name)
    store = Store.open(image_store(root))
    html = render_page(audit_store(store, experiment_for(store, [])), store)
    assert "<b onclick" not in html
    assert name in Page(html).text


def test_the_command(twins: Path, patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "audit.html"
    assert cli.main(["audit", str(twins), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "by-patient (in use)  no leak found: no copies found in two parts; no patient of the test images is known; the"
        " closest pairs are below\n"
    )
    assert "LEAKS: 4 of 12 test images have copies in training, 4 pixel-identical" in said
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert cli.main(["audit", str(patients)]) == 0
    for store in (twins, patients):
        assert cli.main(["audit", str(store), "--split", "published"]) == 3
        assert "leaks, so its scores are inflated. Train with --set data.split=by-patient." in capsys.readouterr().err
    assert cli.main(["audit", str(twins), "--json", "--set", "fold=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["splits"][0]["name"] == "by-patient, fold 1 of 5"
    assert [split["leaks"] for split in found["splits"] if split["kind"] == "published"] == [True]
    assert len(found["duplicates"][0]["members"]) == 4


def test_json_has_every_number(patients: Path) -> None:
    value = as_json(audited(patients))
    assert value["facts"]["volumes"]["BraTS20_Training_002"] == pytest.approx((0.011, 0.036, 0.001))
    assert {split["name"] for split in value["splits"]} >= {"by-patient", "published", "by-patient, fold 4 of 5"}


def test_a_protocol_that_may_leak_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a single twin the published split is still one that nothing keeps from leaking."""
    store = image_store(write_pictures(tmp_path / "raw", twins=False))
    assert cli.main(["audit", str(store), "--split", "published"]) == 3
    said = capsys.readouterr()
    assert "UNSAFE: no copies found in two parts; no patient of the test images is known, but this protocol" in said.out
    assert "may leak" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--split", "duplicated"], 2, "Did you mean 'deduplicated'"),
        (["--set", "recipe.epochs=2"], 2, "takes only settings of data"),
        (["--set", "store=x"], 2, "set the same thing"),
        (["--split", "published", "--set", "data.split=published"], 2, "set the same thing"),
        (["--split", "published", "--set", "fold=1"], 2, "no folds"),
        (["--output", "nowhere/audit.html"], 2, "no folder nowhere"),
        (["--output", "STORE/audit.html"], 2, "inside the store"),
        (["--output", "FOLDER.html"], 2, "is a folder: name the file"),
    ],
)
def test_refusals(
    arguments: list[str], code: int, words: str, twins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(twins)
    folder = tmp_path / "folder.html"
    folder.mkdir()
    given = [argument.replace("STORE", str(twins)).replace("FOLDER.html", str(folder)) for argument in arguments]
    assert cli.main(["audit", str(twins), *given]) == code
    error = capsys.readouterr().err
    assert re.search(words, error)
    assert "Traceback" not in error
    assert tree(twins) == before


def test_foreign_and_damaged_stores(twins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(tmp_path / "nothing")]) == 3
    assert cli.main(["audit", str(tmp_path)]) == 3
    assert "is not a store" in capsys.readouterr().err
    broken = shutil.copytree(twins, tmp_path / "broken.zarr")
    group = broken / "index" / "zarr.json"
    contents = json.loads(group.read_text())
    del contents["attributes"]["mode"]
    group.write_text(json.dumps(contents))
    with pytest.raises(DataError, match="is damaged: invalid index column mode"):
        audited(broken)
    shutil.rmtree(broken / "images")
    with pytest.raises(DataError, match="damaged"):
        audited(broken)
