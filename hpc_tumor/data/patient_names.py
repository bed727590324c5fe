"""The patient that the name of a case tells, where datasets name the time of a scan too: one rule per naming.

A name is only taken apart where its dataset, or a word for a time in it, leaves no doubt. A number at the end alone
(`case_1`, `case_2`) says nothing: whether two such cases are one patient is left to their scans.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 255  # characters of a name that is taken apart: no file can be named after a longer one


@dataclass(frozen=True)
class Naming:
    """A naming of cases that tells the patient from the time.

    Attributes:
        source: the dataset that names its cases so.
        pattern: of the whole name, in any case.
        patient: template of the patient's name, of groups of the pattern.
        example: two names of one patient.
    """

    source: str
    pattern: re.Pattern[str]
    patient: str
    example: tuple[str, str]


def _naming(source: str, pattern: str, *example: str, patient: str = r"\g<patient>") -> Naming:
    first, second = example
    return Naming(source, re.compile(pattern, re.IGNORECASE | re.ASCII), patient, (first, second))


# With a number in it: a prefix without one may be that of every patient, as in patient_visit2.
_PATIENT = r"(?P<patient>.*?\d.*?)"
_DATE = r"(?:19|20)\d\d(?P<between>[.-])\d\d(?P=between)\d\d"

NAMINGS = (
    _naming(
        "BraTS 2023 and later: GLI, MEN, MET, PED, SSA; the last three digits are the time (Synapse syn51156910)",
        r"(?P<patient>BraTS-[A-Za-z]+-\d{4,6})-\d{3}", "BraTS-GLI-00005-000", "BraTS-GLI-00005-100",
    ),
    _naming(
        "BraTS 2024 MEN-RT; the last digit is the time (Synapse syn53708249)",
        r"(?P<patient>BraTS-MEN-RT-\d{4})-\d", "BraTS-MEN-RT-0002-1", "BraTS-MEN-RT-0002-2",
    ),
    _naming(
        "BraTS 2017 to 2019: site, patient and time; only the prefix changed from year to year (name_mapping.csv)",
        r"BraTS1[789]_(?P<site>CBICA|TCIA|TMC|2013)\d{0,2}_(?P<number>[A-Za-z0-9]+)_\d",
        "Brats17_TCIA_425_1", "BraTS19_TCIA01_425_1", patient=r"BraTS \g<site> \g<number>",
    ),
    _naming(
        "BraTS 2014 to 2016: patient and day",
        r"(?P<patient>brats_(?:tcia|2013)_pat\d+)_\d{1,4}", "brats_tcia_pat309_0121", "brats_tcia_pat309_0188",
    ),
    _naming(
        "UCSF-PDGM: FU and the days since the first scan (doi 10.7937/tcia.bdgf-8v37)",
        r"(?P<patient>UCSF-PDGM-\d{3,4})(?:_FU\d{1,4}d)?(?:_nifti)?", "UCSF-PDGM-0409", "UCSF-PDGM-0409_FU001d",
    ),
    _naming(
        "UPENN-GBM: 11 before the operation, 21 afterwards (doi 10.7937/TCIA.709X-DN49)",
        r"(?P<patient>UPENN-GBM-\d{5})_[12]1", "UPENN-GBM-00001_11", "UPENN-GBM-00001_21",
    ),
    _naming(
        "LUMIERE: a folder per week, two scans of one week counted (doi 10.1038/s41597-022-01881-7)",
        r"(?P<patient>Patient-\d{3})_week-\d{3}(?:-\d)?", "Patient-003_week-000-1", "Patient-003_week-044",
    ),
    _naming(
        "BIDS: sessions of a subject (bids-specification, entities sub and ses)",
        r"(?P<patient>sub-[A-Za-z0-9]+)_ses-[A-Za-z0-9]+", "sub-01_ses-01", "sub-01_ses-02",
    ),
    _naming(
        "a date at the end, as in the TCIA collections behind BraTS",
        rf"{_PATIENT}_{_DATE}", "TCGA-02-0006_1996.08.23", "TCGA-02-0006_1996-11-05",
    ),
    _naming(
        "a word for a time, and its number",
        rf"{_PATIENT}[_-](?:time|timepoint|time-point|tp|visit|ses|session|week|month|follow-?up|fu)"
        r"[_-]?\d{1,4}", "PatientID_0003_Timepoint_1", "PatientID_0003_Timepoint_2",
    ),
    _naming(
        "baseline and follow-up",
        rf"{_PATIENT}[_-](?:baseline|follow-?up)", "P07_baseline", "P07_followup",
    ),
)  # fmt: skip


def patient_of(case: str) -> str:
    """Name of the patient that the name of a case tells; the whole of it where no naming fits. Lower case.

    The time that a naming takes grows with the square of the length: names over `LONGEST` stay whole.
    """
    for naming in NAMINGS if len(case) <= LONGEST else ():
        if match := naming.pattern.fullmatch(case):
            return match.expand(naming.patient).casefold()
    return case.casefold()
