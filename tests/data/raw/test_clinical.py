"""Tables beside BraTS cases: every fact of the real ones arrives, and nothing that cannot be true."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from raw_samples import real_data, save, tumour, write_case, write_patients

from hpc_tumor.cli.views.conversion import summary_lines
from hpc_tumor.data.case import Case, walk
from hpc_tumor.data.convert.prepare import PrepareSummary, prepare_dataset
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.clinical import Clinical, clinical_counts, read_clinical
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store

MAPPING = "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID"
ONE = "BraTS20_Training_001"


def case(name: str, folder: Path = Path("raw")) -> Case:
    return Case(name, {}, folder / name)


def read(root: Path, *names: str) -> Clinical:
    return read_clinical(walk(root), [case(name, root) for name in names or (ONE,)])


def table(root: Path, text: str | bytes, name: str = "survival_info.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_every_fact_of_the_real_tables(tmp_path: Path) -> None:
    """Read another way: by the csv module's dictionaries and plain Python."""
    source = real_data("csv")
    ids = [f"BraTS20_Training_{n:03}" for n in range(1, 370)]
    with (source / "name_mapping_2019.csv").open() as file:
        mapping = {row["BraTS_2019_subject_ID"]: row for row in csv.DictReader(file)}
    known = read(source, *ids, *mapping)
    assert known.notes == []
    with (source / "survival_info.csv").open(newline="") as file:
        rows = {row["Brats20ID"]: row for row in csv.DictReader(file)}
    assert len(rows) == 236
    for name in ids:
        expected: dict[str, Any] = {}
        if row := rows.get(name):
            text = row["Survival_days"]
            days = int(text.split("(")[1].split()[0]) if "ALIVE" in text else int(text)
            expected = {"age": float(row["Age"]), "survival_days": days, "alive": "ALIVE" in text}
            if row["Extent_of_Resection"] != "NA":
                expected["resection"] = row["Extent_of_Resection"]
        assert known.facts.get(name, {}) == expected
    patient = {"age": 61.622, "survival_days": 361, "alive": True, "resection": "GTR"}
    assert known.facts["BraTS20_Training_084"] == patient
    editions = {"BraTS_2017_subject_ID": "2017", "BraTS_2018_subject_ID": "2018", "TCGA_TCIA_subject_ID": "TCGA"}
    for name, row in mapping.items():
        others = {edition: row[title] for title, edition in editions.items() if row[title] != "NA"}
        assert known.facts.get(name, {}) == {"grade": row["Grade"], **({"other_ids": others} if others else {})}
    counts = clinical_counts(known.facts.get(name, {}) for name in ids)
    assert counts == {"grade": 0, "survival": 236, "age": 236, "resection": 129, "alive": 1}


@pytest.mark.parametrize(
    ("name", "text", "id_"),
    [
        ("survival_data.csv", "Brats17ID,Age,Survival\nX,60.5,100\n", "X"),
        ("survival_data.csv", "BraTS18ID,Age,Survival,ResectionStatus\nX,60.5,100,\n", "X"),
        ("survival_data.csv", "BraTS19ID,Age,Survival,ResectionStatus\r\nX,60.5,100,NA\r\n", "X"),
        ("survival_info.csv", "Brats20ID,Age,Survival_days,Extent_of_Resection\r\nX,60.5,100,NA\r\n", "X"),
        ("BraTS2020_survival_info.csv", "\ufeffBraTS_2020_subject_ID, Age ,Survival_Days\n x , 60.5 , 100.0 \n\n", "X"),
    ],
)
def test_columns_of_all_years(tmp_path: Path, name: str, text: str, id_: str) -> None:
    known = read(table(tmp_path, text, name), id_)
    assert known.facts.get(id_, {}) == {"age": 60.5, "survival_days": 100, "alive": False}
    assert known.notes == []


def test_a_case_of_one_year_is_found_by_a_later_table(tmp_path: Path) -> None:
    text = f"{MAPPING},BraTS_2020_subject_ID\nLGG,NA,Brats18_A_1,TCGA-1,BraTS19_A_1,{ONE}\n"
    known = read(table(tmp_path, text, "name_mapping.csv"), "BRATS18_A_1")
    others = {"TCGA": "TCGA-1", "2019": "BraTS19_A_1", "2020": ONE}
    assert known.facts.get("BRATS18_A_1", {}) == {"grade": "LGG", "other_ids": others}


def test_validation_tables_add_and_do_not_overwrite(tmp_path: Path) -> None:
    table(tmp_path, f"Grade,BraTS_2020_subject_ID\nHGG,{ONE}\n", "name_mapping.csv")
    table(tmp_path, f"Grade,BraTS_2020_subject_ID\nLGG,{ONE}\n", "name_mapping_validation_data.csv")
    table(tmp_path / "ValidationData", f"BraTS20ID,Age,ResectionStatus\n{ONE},50,GTR\n", "survival_evaluation.csv")
    known = read(tmp_path)
    assert known.facts.get(ONE, {}) == {"grade": "HGG", "age": 50.0, "resection": "GTR"}
    assert known.notes == []


def test_grade_by_folder(tmp_path: Path) -> None:
    cases = [case("a", tmp_path / "HGG"), case("b", tmp_path / "LGG"), case("c", tmp_path / "HGG")]
    table(tmp_path, "Grade,BraTS_2018_subject_ID\nHGG,a\nLGG,c\n", "name_mapping.csv")
    known = read_clinical(walk(tmp_path), cases)
    assert [known.facts.get(name, {}).get("grade") for name in "abc"] == ["HGG", "LGG", None]
    (note,) = known.notes
    assert "disagree: grade of c (HGG in the folder's name; LGG in name_mapping.csv)" in note


@pytest.mark.parametrize(
    ("row", "left", "words"),
    [
        ("-3,100,GTR", {"survival_days": 100, "alive": False, "resection": "GTR"}, "line 2: age '-3'"),
        ("1e2,100,GTR", {"survival_days": 100, "alive": False, "resection": "GTR"}, "age '1e2'"),
        ("6_0,100,GTR", {"survival_days": 100, "alive": False, "resection": "GTR"}, "age '6_0'"),
        ("160.4,100,GTR", {"survival_days": 100, "alive": False, "resection": "GTR"}, "age '160.4'"),
        ("60,99999999999,GTR", {"age": 60.0, "resection": "GTR"}, "survival '99999999999'"),
        ("60,12.5,GTR", {"age": 60.0, "resection": "GTR"}, "survival '12.5'"),
        ("60,-5,GTR", {"age": 60.0, "resection": "GTR"}, "survival '-5'"),
        ("60,ALIVE,GTR", {"age": 60.0, "resection": "GTR"}, "survival 'ALIVE'"),
        ("60,DEAD (361 days later),NA", {"age": 60.0}, "survival 'DEAD"),
        ("60,100,\x1b[31mred", {"age": 60.0, "survival_days": 100, "alive": False}, r"resection '\\x1b[31mred'"),
        ("60,100", {}, "line 2: 3 values for 4 columns"),
    ],
)
def test_what_cannot_be_true_is_left_out_and_said(tmp_path: Path, row: str, left: dict[str, Any], words: str) -> None:
    known = read(table(tmp_path, f"Brats20ID,Age,Survival_days,Extent_of_Resection\n{ONE},{row}\n"))
    assert known.facts.get(ONE, {}) == left
    note = " ".join(known.notes)
    assert note.startswith("skipped in survival_info.csv: ")
    assert words in note
    assert "\x1b" not in note


def test_lines_that_disagree_say_nothing(tmp_path: Path) -> None:
    known = read(table(tmp_path, f"Brats20ID,Age,Survival_days\n{ONE},60,10\n{ONE},60,20\n{ONE},60,10\n"))
    assert known.facts.get(ONE, {}) == {"age": 60.0}
    (note,) = known.notes
    assert "tables disagree" in note
    assert "survival_info.csv, line 3" in note


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "survival_info.csv is empty"),
        (b"Patient,Age\nX,3\n", "has the columns Patient, Age; it needs"),
        (b"Brats20ID,Age,Age\nX,3,4\n", "each once"),
        (b"Brats20ID\nX\n", "it needs"),
        (b"Brats20ID,Age\nX,\xff\xfe\n", "not text in UTF-8"),
        ("Brats20ID,Age\nX,3\n".encode("utf-16"), "not text in UTF-8"),
        (b"Brats20ID,Age\nX,3\0\n", "null characters"),
        (b'Brats20ID,Age\nX,"3\n', "is not CSV"),
        (b"Brats20ID,Age\n" + b"X" * 200_000 + b",3\n", "is not CSV"),
        (b"Brats20ID,Age\n" + b"X,3\n" * 2_000_000, "the limit for a clinical table"),
    ],
)
def test_a_broken_table_is_left_out_in_one_line(tmp_path: Path, text: bytes, words: str) -> None:
    known = read(table(tmp_path, text))
    assert known.facts == {}
    (note,) = known.notes
    assert words in note
    assert "\n" not in note


def test_tables_behind_links_out_of_the_source_are_not_read(tmp_path: Path) -> None:
    table(tmp_path / "elsewhere", f"Brats20ID,Age\n{ONE},60\n")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "survival_info.csv").symlink_to(tmp_path / "elsewhere" / "survival_info.csv")
    assert read(tmp_path / "source").facts == {}


def prepare(source: Path, store: Path) -> PrepareSummary:
    return prepare_dataset(BraTSReader(), source, store, workers=1)


def test_a_changed_table_updates_the_store_without_converting(tmp_path: Path) -> None:
    source, store = write_patients(tmp_path / "raw", 3), tmp_path / "s.zarr"
    bare = prepare(source, store)
    assert Store.open(store).clinical == [{}, {}, {}]
    table(
        source, "Grade,BraTS_2020_subject_ID\nHGG,BraTS20_Training_001\nLGG,BraTS20_Training_003\n", "name_mapping.csv"
    )
    graded = prepare(source, store)
    assert (graded.converted, graded.kept, graded.notes) == (0, 3, [])
    assert Store.open(store).clinical == [{"grade": "HGG"}, {}, {"grade": "LGG"}]
    assert graded.fingerprint != bare.fingerprint
    fresh = prepare(source, tmp_path / "fresh.zarr")
    assert fresh.fingerprint == graded.fingerprint == prepare(source, store).fingerprint
    (source / "name_mapping.csv").unlink()
    assert prepare(source, store).fingerprint == bare.fingerprint
    assert Store.open(store).clinical == [{}, {}, {}]


def test_a_broken_table_does_not_stop_the_scans(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 2)
    table(source, b"\x00\xff")
    summary = prepare(source, tmp_path / "s.zarr")
    assert (summary.converted, summary.failed, len(summary.notes)) == (2, [], 1)
    assert "clinical" not in dict(summary_lines(summary))


def test_the_line_that_is_shown(tmp_path: Path) -> None:
    source = write_patients(tmp_path / "raw", 2)
    rows = f"{ONE},60,ALIVE (361 days later),NA\nBraTS20_Training_002,61,9,GTR\n"
    table(source, f"Brats20ID,Age,Survival_days,Extent_of_Resection\n{rows}")
    shown = dict(summary_lines(prepare(source, tmp_path / "s.zarr")))
    assert shown["clinical"] == "survival of 2 (1 alive), age of 2, resection of 1"


def test_validation_data_without_labels_is_left_out(tmp_path: Path) -> None:
    training, validation = tmp_path / "raw/TrainingData", tmp_path / "raw/ValidationData"
    write_case(training / "BraTS20_Training_001")
    for n in (1, 2):
        folder = write_case(validation / f"BraTS20_Validation_00{n}")
        (folder / f"BraTS20_Validation_00{n}_seg.nii.gz").unlink()
    report = inspect_source(tmp_path / "raw")
    assert [case.id for case in report.cases] == ["BraTS20_Training_001"]
    assert report.notes == ["2 cases of validation or test data skipped: published without labels"]
    summary = prepare(tmp_path / "raw", tmp_path / "s.zarr")
    assert (summary.cases, summary.failed) == (1, [])
    shutil.rmtree(training)
    with pytest.raises(ValueError, match=r"only validation or test data \(2 cases"):
        inspect_source(tmp_path / "raw")


def test_a_validation_case_that_lost_its_labels_is_not_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_case(tmp_path / "validation" / name)
    (tmp_path / "validation" / "b" / "b_seg.nii.gz").unlink()
    summary = prepare(tmp_path / "validation", tmp_path / "s.zarr")
    assert [name for name, _ in summary.failed] == ["b"]
    assert [case.id for case in inspect_source(tmp_path).cases] == ["a", "b"]
    save(tmp_path / "validation" / "b" / "b_seg.nii.gz", tumour())
    assert inspect_source(tmp_path).notes == []
