"""The shipped reference names the patient of every Cheng slice, also from an archive of the package."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from raw_samples import real_data

from hpc_tumor.cluster.launch.snapshot import take_snapshot
from hpc_tumor.data.patients.reference import SLICES, class_of_slice, family, patient_of, pid_of, reference

NUMBERS = range(1, SLICES + 1)


def test_all_slices_have_a_patient() -> None:
    assert len({pid_of(number) for number in NUMBERS}) == 233
    assert len({patient_of(number) for number in NUMBERS}) == 209
    counts = {name: sum(class_of_slice(number) == name for number in NUMBERS) for name in ("glioma", "pituitary")}
    assert counts == {"glioma": 1426, "pituitary": 930}


@pytest.mark.parametrize(
    ("pid", "patient"), [("MR040240B", "MR040240"), ("MR040240", "MR040240"), ("100360", "100360"), ("9A", "9A")]
)
def test_a_family_shares_all_but_the_suffix_letter(pid: str, patient: str) -> None:
    assert family(pid) == patient


@pytest.mark.parametrize("number", [0, -1, SLICES + 1])
def test_other_numbers_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="is not in the Cheng set"):
        pid_of(number)


def test_the_file_is_small_and_says_where_it_is_from() -> None:
    folder = Path(sys.modules["hpc_tumor.data.patients"].__file__ or "").parent
    assert (folder / "cheng.npz").stat().st_size <= 3_500_000
    text = (folder / "cheng.md").read_text(encoding="utf-8")
    assert re.search(r"10\.6084/m9\.figshare\.1512427.*CC BY 4\.0.*Cheng J", text, re.DOTALL)
    assert reference().contrast.shape == (SLICES, 48, 48)


def test_jobs_read_it_from_their_archive(tmp_path: Path) -> None:
    archive = take_snapshot(tmp_path)
    assert "hpc_tumor/data/patients/cheng.npz" in zipfile.ZipFile(archive).namelist()
    code = "from hpc_tumor.data.patients import reference as r; print(r.__file__, r.pid_of(3064))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(archive)!r}); {code}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert printed[0].startswith(str(archive))
    assert printed[1] == pid_of(SLICES)


def test_it_agrees_with_the_published_table() -> None:
    with (real_data("cheng") / "patients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [pid_of(int(row["index"])) for row in rows] == [row["pid"] for row in rows]
    assert [class_of_slice(int(row["index"])) for row in rows] == [row["class"] for row in rows]
