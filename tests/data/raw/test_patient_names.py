"""Names of cases that tell their patient: one test per naming, and names that must not be joined."""

from __future__ import annotations

import csv
import time

import pytest
from raw_samples import real_data

from hpc_tumor.data.raw.patient_names import NAMINGS, Naming, patient_of


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: naming.source)
def test_times_of_one_patient_are_one_patient_by_this_rule_alone(naming: Naming) -> None:
    for name in naming.example:
        assert next(rule for rule in NAMINGS if rule.patient_of(name)) is naming
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
        (("UCSD-PTGBM-0002_01", "UCSD-PTGBM-0002_02", "UCSD-PTGBM-0002"), "ucsd-ptgbm-0002"),
        (("RHUH-0001_0", "RHUH-0001_1", "RHUH-0001_2", "RHUH-0001"), "rhuh-0001"),
        (("TCGA-02-0006_19960823", "TCGA-02-0006_1996.08.23", "TCGA_02_0006_1996-11-05", "TCGA-02-0006"),
         "tcga-02-0006"),
        (("TCGA_DU_A5TP_19970614", "TCGA-DU-A5TP_1997.03.11"), "tcga-du-a5tp"),
        (("P1_preop", "P1_postop", "P1_pre", "P1_post", "P1_pre-op", "P1_post_op_2", "P1"), "p1"),
        (("P01_day0", "P01_day30", "P01_year1", "P01_year2", "P01_wk4", "P01_wk8", "P01_month_06"), "p01"),
        (("P01_FU001d", "P01_FU012d", "P01_19960823", "P01_1996_08_23", "P01_visit1_2019-04-03"), "p01"),
        (("site1_007_visit1", "site1_007_visit2"), "site1_007"),
        (("Patient2001_visit1", "Patient2001_visit2"), "patient2001"),
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
        ("site1_week_001", "site1_week_002"),
        ("study2_fu_001", "study2_fu_002"),
        ("hospital2_session_1", "hospital2_session_2"),
        ("Center-3_visit_1", "Center-3_visit_2"),
        ("cohort1_followup_01", "cohort1_followup_02"),
        ("BraTS2021_visit_1", "BraTS2021_visit_2"),
        ("BraTS20_2020-01-02", "BraTS20_2020-02-03"),
        ("case2020_2021-01-01", "case2020_2022-01-01"),
        ("data_2020_20210101", "data_2020_20210102"),
        ("3T_fu_001", "3T_fu_002"),
        ("T1_pre", "T1_post"),
        ("week1_visit1", "week1_visit2"),
        ("site1_visit1_20190403", "site1_visit2_20190403"),
        ("P07_19961399", "P07_19961398"),
        ("UCSD-PTGBM-0002_01", "UCSD-PTGBM-0003_01", "UCSD-PTGBM-0002_001"),
        ("RHUH-0001_0", "RHUH-0002_0", "RHUH-0001_10"),
        ("TCGA-02-0006_19960823", "TCGA-02-0009_19960823", "TCGA-06-0006_19960823"),
    ],
)
def test_names_that_say_too_little_are_not_joined(names: tuple[str, ...]) -> None:
    assert len({patient_of(name) for name in names}) == len(names)


@pytest.mark.parametrize("piece", ["1", "a", "_", "1_", "a1-", "P07_visit1_", "sub-", "_2019"])
def test_a_long_name_takes_no_time_worth_mentioning(piece: str) -> None:
    name = piece * (200_000 // len(piece)) + "!"
    start = time.process_time()
    assert patient_of(name) == name.casefold()
    assert time.process_time() - start < 5  # a pattern of quadratic time would take minutes


def test_the_published_table_of_names_gives_a_patient_a_row() -> None:
    """335 patients of 2019, most of them under a name of 2017 and of 2018, too."""
    with (real_data("csv") / "name_mapping_2019.csv").open() as file:
        rows = [[row[f"BraTS_{year}_subject_ID"] for year in (2017, 2018, 2019)] for row in csv.DictReader(file)]
    patients = [{patient_of(name) for name in row if name != "NA"} for row in rows]
    assert {len(names) for names in patients} == {1}
    assert len(set.union(*patients)) == len(rows) == 335
