"""Patient ids from case names that also contain the time of the scan: one rule per naming scheme.

A name is split in two cases only: it has the form of a known dataset, or it is a plausible patient id followed by a
word for a time (`P07_visit2`, `P07_preop`) or a date. A plausible id ends in a number; the letters before the number
are not a word for a group of patients, a scan or a time (`site1`, `BraTS2021`, `week3`); and the number is not a year
(`case2020`), unless these letters denote a patient (`patient2020`).

Ambiguous names are not joined, nor names that differ in a final number (`case_1`, `case_2`): only their scans decide
whether two such cases are one patient.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

# Words for a time point, in any case: with a required number, and with an optional one. Also used for folder names.
TIME_WORDS = r"(?:ses(?:sion)?|time(?:[-_ ]?point)?|tp|visit|days?|weeks?|wk|months?|years?|fu|follow[-_ ]?up)"
STAGE_WORDS = r"(?:baseline|follow[-_ ]?up|(?:pre|post)(?:[-_ ]?op(?:erati(?:ve|on))?)?)"
DATE = "(?:" + "|".join(
    rf"(?:19|20)\d\d{between}(?:0[1-9]|1[0-2]){between}(?:0[1-9]|[12]\d|3[01])" for between in ("", "-", "_", r"\.")
) + ")"  # fmt: skip

# Words before a number that does not count patients.
_NO_PATIENT = re.compile(
    rf"{TIME_WORDS}|{STAGE_WORDS}|point|up|(?:site|study|trial|arm|project|protocol|phase|hospital|clinic|cent(?:er|re)"
    r"|institut(?:e|ion)|university|department|ward|country|region|cohort|group|dataset|data|set|collection|brats"
    r"|challenge|task|edition|release|version|v|batch|part|fold|split|series|run|scan|scanner|machine|vendor|mri?|t"
    r"|rater|reader)(?:s|id)?",
    re.IGNORECASE,
)
_PATIENT_WORDS = ("p", "pat", "patient", "patientid", "sub", "subj", "subject", "subjectid")


@dataclass(frozen=True)
class Naming:
    """A naming scheme of cases that separates patient and time.

    Attributes:
        source: dataset that uses it.
        pattern: matches the whole name, case-insensitive, in linear time.
        patient: template of the patient's name, with groups of the pattern.
        example: two names of one patient.
        of_one_dataset: True if the pattern suffices; else its group "patient" must be a plausible id.
    """

    source: str
    pattern: re.Pattern[str]
    patient: str
    example: tuple[str, str]
    of_one_dataset: bool

    def patient_of(self, case: str) -> str | None:
        """Return the patient's name in lower case, or None if the case does not match."""
        match = self.pattern.fullmatch(case)
        if match is None or not (self.of_one_dataset or may_be_a_patient(match["patient"])):
            return None
        return match.expand(self.patient).casefold()


def may_be_a_patient(name: str) -> bool:
    """Return True if a name is a plausible patient id (see above)."""
    before = name.rstrip(string.digits)
    number, before = name[len(before) :], before.rstrip("-_. ")
    word = before[len(before.rstrip(string.ascii_letters)) :].casefold()
    if not number or _NO_PATIENT.fullmatch(word):
        return False
    return word in _PATIENT_WORDS or not (len(number) == 4 and number.startswith(("19", "20")))


def _naming(
    source: str, pattern: str, *example: str, patient: str = r"\g<patient>", of_one_dataset: bool = True
) -> Naming:
    first, second = example
    return Naming(source, re.compile(pattern, re.IGNORECASE | re.ASCII), patient, (first, second), of_one_dataset)


# The shortest prefix that is followed by times only: a visit may be followed by its date.
_COUNTED = rf"{TIME_WORDS}[-_ ]?\d{{1,4}}d?"
_STAGE = rf"{STAGE_WORDS}(?:[-_ ]?\d{{1,4}})?"
_BEGINNING = rf"(?P<patient>.+?)(?:[-_. ](?:{_COUNTED}|{_STAGE}|{DATE}))?[-_. ]"

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
        "UCSD-PTGBM: a number per time point after treatment (TCIA collection UCSD-PTGBM)",
        r"(?P<patient>UCSD-PTGBM-\d{4})_\d{2}", "UCSD-PTGBM-0002_01", "UCSD-PTGBM-0002_02",
    ),
    _naming(
        "RHUH-GBM: 0 before the operation, 1 early afterwards, 2 the follow-up (TCIA collection RHUH-GBM)",
        r"(?P<patient>RHUH-\d{4})_\d", "RHUH-0001_0", "RHUH-0001_2",
    ),
    _naming(
        "TCGA-GBM and TCGA-LGG, also behind BraTS: site, patient and date (TCIA collections; LGG on Kaggle)",
        rf"TCGA[-_](?P<site>[A-Z0-9]{{2}})[-_](?P<number>[A-Z0-9]{{4}})(?:_{DATE})?",
        "TCGA-02-0006_1996.08.23", "TCGA_02_0006_19961105", patient=r"TCGA-\g<site>-\g<number>",
    ),
    _naming(
        "BIDS: sessions of a subject (bids-specification, entities sub and ses)",
        r"(?P<patient>sub-[A-Za-z0-9]+)_ses-[A-Za-z0-9]+", "sub-01_ses-01", "sub-01_ses-02",
    ),
    _naming(
        "a date at the end, as case 355 of BraTS 2020 has it",
        rf"{_BEGINNING}{DATE}", "W39_1998.09.19", "W39_1999-02-03", of_one_dataset=False,
    ),
    _naming(
        "a word for a time, and its number, as in MU-Glioma-Post (TCIA collection)",
        rf"{_BEGINNING}{_COUNTED}", "PatientID_0003_Timepoint_1", "PatientID_0003_Timepoint_2", of_one_dataset=False,
    ),
    _naming(
        "baseline and follow-up, before and after the operation (words in common use)",
        rf"{_BEGINNING}{_STAGE}", "P07_preop", "P07_postop", of_one_dataset=False,
    ),
)  # fmt: skip


def patient_of(case: str) -> str:
    """Return the patient's name in lower case: from the first matching scheme, else the whole case name."""
    return next((patient for naming in NAMINGS if (patient := naming.patient_of(case))), case.casefold())
