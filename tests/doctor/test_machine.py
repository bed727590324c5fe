"""Environment that jobs inherit from a login: variables, limits, mask."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import hpc_tumor
from hpc_tumor.config import ClusterProfile
from hpc_tumor.doctor.finding import Finding
from hpc_tumor.doctor.machine import check_machine
from hpc_tumor.doctor.probe import Probe
from hpc_tumor.validation import build

HOME = str(Path(hpc_tumor.__file__).resolve().parents[1])
PROFILE = build(
    ClusterProfile, {"name": "p", "description": "made up", "node": {"gpus": 2, "cpus": 24, "memory_gb": 9}}, "test"
)


def probe(**values: object) -> Probe:
    limits = {"open_files": 4096, "memory": None}
    return Probe("here", "3.11.7", sys.executable, {}, **{"cpus": 8, "limits": limits, **values})  # type: ignore[arg-type]


def warnings(findings: list[Finding]) -> list[str]:
    assert all(finding.way_out for finding in findings if finding.level != "ok")
    return [finding.text for finding in findings if finding.level == "warning"]


@pytest.fixture(autouse=True)
def mask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_plain_login_is_one_line() -> None:
    found = check_machine(probe(), {"PYTHONPATH": HOME, "CONDA_PREFIX": sys.prefix, "HOME": "/x"}, PROFILE)
    assert [item.level for item in found] == ["ok"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONDA_PREFIX", "/opt/conda"), ("PYTHONPATH", f"/opt/other:{HOME}"), ("PYTHONHOME", "/usr"),
        ("LD_PRELOAD", "/opt/lib.so"), ("OMP_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "64"),
        ("SBATCH_PARTITION", "x"), ("SBATCH_EXPORT", "NONE"),
    ],
)  # fmt: skip
def test_variables_that_break_jobs(name: str, value: str) -> None:
    (text,) = warnings(check_machine(probe(), {name: value}, PROFILE))
    assert name.partition("_")[0].lower() in text.lower()


def test_threads_that_fit_or_that_the_profile_sets_are_fine() -> None:
    assert not warnings(check_machine(probe(), {"OMP_NUM_THREADS": "12"}, PROFILE))
    own = PROFILE.environment.model_copy(update={"variables": {"OMP_NUM_THREADS": "1"}})
    assert not warnings(
        check_machine(probe(), {"OMP_NUM_THREADS": "64"}, PROFILE.model_copy(update={"environment": own}))
    )
    assert not warnings(check_machine(probe(), {"OMP_NUM_THREADS": "8"}, None))


def test_limits() -> None:
    tight = probe(limits={"open_files": 256, "memory": 8 * 2**30}, shared_memory=64 * 2**20)
    texts = warnings(check_machine(tight, {}, None))
    assert [any(words in text for text in texts) for words in ("256 files", "8.6 GB of address space", "/dev/shm")] == [
        True, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "words"), [(0o777, "your own"), (0o000, "everyone"), (0o027, ""), (0o002, "")])
def test_umask(value: int, words: str) -> None:
    before = os.umask(value)
    found = check_machine(probe(), {}, None)
    os.umask(before)
    assert (words in warnings(found)[0]) if words else not warnings(found)


def test_reading_the_mask_does_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("changed for all threads"))
    check_machine(probe(), {}, None)
