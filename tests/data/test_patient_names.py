"""Names of cases that tell their patient: one test per naming, and names that must not be joined."""

from __future__ import annotations

import csv
import time

import pytest
from raw_samples import real_data

from hpc_tumor.data.patient_names import NAMINGS, Naming, patient_of


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: naming.source)
def test_times_of_one_patient_are_one_patient_by_this_rule_alone(naming: Naming) -> None:
    for name in naming.example:
        assert next(rule for rule in NAMINGS if rule.pattern.fullmatch(name)) is naming
    assert patient_of(naming.example[0]) == patient_of(naming.example[1])


@pytest.mark.parametrize(
    ("names", "patient"),
    [
        (("BraTS-GLI-00005-000", "BraTS-GLI-00005-100", "brats-gli-00005-101"), "brats-gli-00005"),
        (("BraTS-PED-00005-000", "BraTS-PED-00005-001"), "brats-ped-00005"),
        (("BraTS-SSA-00041-000", "BraTS-SSA-00041-100"), "brats-ssa-00041"),
        (("BraTS-MEN-00004-000", "BraTS-MEN-00004-001"), "brats-men-00004"),
        (("BraTS-MET-00086-000", "BraTS-MET-00086-001"), "brats-met-00086"),
        (("BraTS-MEN-RT-0002-1", "BraTS-MEN-RT-0002-2"), "brats-men-rt-0002"),
        (("Brats17_CBICA_AAB_1", "Brats18_CBICA_AAB_1", "BraTS19_CBICA_AAB_1"), "brats cbica aab"),
        (("UCSF-PDGM-0409", "UCSF-PDGM-0409_FU001d", "UCSF-PDGM-0409_nifti", "UCSF-PDGM-0409_FU001d_nifti"),
         "ucsf-pdgm-0409"),
        (("UPENN-GBM-00001_11", "UPENN-GBM-00001_21", "UPENN-GBM-00001"), "upenn-gbm-00001"),
        (("Patient-003_week-044", "Patient-003_week-000-1", "Patient-003_week-000-2", "Patient-003"), "patient-003"),
        (("sub-01_ses-01", "sub-01_ses-02", "sub-01_ses-followup", "sub-01"), "sub-01"),
        (("P07_time-2", "P07_tp02", "P07_visit2", "P07_baseline", "P07_followup1", "P07_follow-up", "P07-week-12"),
         "p07"),
    ],
)  # fmt: skip
def test_all_names_of_a_patient_are_one(names: tuple[str, ...], patient: str) -> None:
    assert {patient_of(name) for name in names} == {patient}


@pytest.mark.parametrize(
    "names",
    [
        ("BraTS20_Training_001", "BraTS20_Training_002"),
        ("BraTS2021_00005", "BraTS2021_00006"),
        ("BraTS-GLI-00005-100", "BraTS-GLI-00006-100"),
        ("BraTS-GLI-00005-000", "BraTS-PED-00005-000", "BraTS-MEN-00005-000"),
        ("BraTS-GoAT-00001", "BraTS-GoAT-00002"),
        ("BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAG_1"),
        ("BraTS19_2013_1_1", "BraTS19_2013_11_1", "BraTS19_TMC_1_1"),
        ("brats_tcia_pat309_0121", "brats_tcia_pat310_0121"),
        ("UCSF-PDGM-0409", "UCSF-PDGM-0410", "UCSF-PDGM-0410_FU001d_other"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00002_11", "UPENN-GBM-00001_31"),
        ("Patient-003_week-044", "Patient-004_week-044"),
        ("sub-01_ses-01", "sub-02_ses-01", "sub-011_ses-01"),
        ("case_1", "case_2"),
        ("P07_1", "P07_2"),
        ("A11", "A21"),
        ("1_11", "1_21"),
        ("week-001", "week-002"),
        ("patient_visit1", "patient_visit2"),
        ("baseline", "followup"),
        ("volume_001", "volume_002"),
        ("P07_scan", "P07_seg"),
        ("site1_20190403", "site1_20190404"),
    ],
)
def test_names_that_say_too_little_are_not_joined(names: tuple[str, ...]) -> None:
    assert len({patient_of(name) for name in names}) == len(names)


def test_a_name_of_any_length_is_read_at_once() -> None:
    begun = time.perf_counter()
    assert patient_of("P1_" * 100_000) == "p1_" * 100_000
    assert time.perf_counter() - begun < 1


def test_the_published_table_of_names_gives_a_patient_a_row() -> None:
    """335 patients of 2019, most of them under a name of 2017 and of 2018, too."""
    with (real_data("csv") / "name_mapping_2019.csv").open() as file:
        rows = [[row[f"BraTS_{year}_subject_ID"] for year in (2017, 2018, 2019)] for row in csv.DictReader(file)]
    patients = [{patient_of(name) for name in row if name != "NA"} for row in rows]
    assert {len(names) for names in patients} == {1}
    assert len(set.union(*patients)) == len(rows) == 335
