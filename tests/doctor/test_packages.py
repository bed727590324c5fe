"""Python and packages: what is there, what fails, and whether a node has the same."""

from __future__ import annotations

import json
import signal
import subprocess
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import MagicMock

import pytest

from hpc_tumor.doctor.packages import check_packages, compare_packages
from hpc_tumor.doctor.probe import IMPORTS, ImportFailure, ImportFault, Probe, TorchFacts, probe_from, probe_here
from hpc_tumor.system.torch_builds import TorchBuild

FIT = Probe(
    "here", "3.11.7", "/env/bin/python", {"hpc-tumor": "0.1.0", "torch": "2.14.1", "torchvision": "0.29.1"},
    torch=TorchFacts(TorchBuild("2.14.1+cu130", cuda="13.0")),
)  # fmt: skip


def test_every_package_that_is_needed_is_tried() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needed = {text.partition(">")[0] for text in project["dependencies"]}
    assert needed == set(IMPORTS)


@pytest.mark.slow
def test_this_machine_is_fit_and_its_facts_survive_json() -> None:
    probe = probe_here()
    assert probe.failed == {}
    assert probe.too_old == {}
    assert probe.torch is not None
    assert probe.torch.precision[0] in ("bfloat16", "float16", "float32", "bfloat16 or float32")
    assert probe_from(json.loads(json.dumps(probe.as_dict()))) == probe
    assert {item.level for item in check_packages(probe)} == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ImportError('libcudart.so.13: cannot open')", "libcudart.so.13"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_an_import_that_fails_or_crashes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    (tmp_path / "nibabel.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    probe = probe_here()
    assert list(probe.failed) == ["nibabel"]
    found = [item for item in check_packages(probe) if item.level == "error"]
    assert len(found) == 1
    assert words in found[0].text
    assert "pip install" in found[0].way_out


@pytest.mark.parametrize(
    ("ends", "failure"),
    [
        (subprocess.TimeoutExpired("python", 300, stderr=b"importing h5py\nimporting torch\n"), ImportFault.HANGS),
        (CompletedProcess("python", -signal.SIGILL, stderr="importing torch\n"), ImportFault.WRONG_CPU),
        (CompletedProcess("python", 1, stderr="importing torch\nNo module named 'x'\n"), ImportFault.ABSENT),
        (CompletedProcess("python", 3, stderr="asking torch\n"), ImportFault.OTHER),
        (OSError("Exec format error"), ImportFault.OTHER),
    ],
)  # fmt: skip
def test_how_the_imports_ended(
    monkeypatch: pytest.MonkeyPatch, ends: Exception | CompletedProcess[str], failure: ImportFault
) -> None:
    monkeypatch.setattr(subprocess, "run", MagicMock(side_effect=[ends, OSError(), OSError()]))
    ((module, found),) = probe_here().failed.items()
    assert module == ("hpc_tumor" if isinstance(ends, OSError) else "torch")
    assert found.kind is failure


def test_versions_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", MagicMock(side_effect=OSError("no Python")))
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=99.0", "h5py>=1; extra == 'x'", "torch>=2.6"])
    assert probe_here().too_old == {"numpy": "99.0"}


def test_a_package_that_is_not_there() -> None:
    probe = replace(FIT, failed={"google_crc32c": ImportFailure("ModuleNotFoundError: …", ImportFault.ABSENT)})
    (found,) = check_packages(probe)
    assert found.text == "google-crc32c is not installed"
    assert found.way_out == 'pip install "google-crc32c", with /env/bin/python'


@pytest.mark.parametrize(
    ("why", "kind", "text", "way"),
    [
        ("killed by SIGILL", ImportFault.WRONG_CPU, "built for another CPU", "--force-reinstall"),
        ("libm.so.6: version `GLIBC_2.29' not found", ImportFault.OTHER, "GLIBC_2.29", "LD_LIBRARY_PATH"),
        ("did not finish within 300 s", ImportFault.HANGS, "importing nibabel did not finish", "file system"),
    ],
)
def test_the_way_out_depends_on_the_kind_of_failure(why: str, kind: ImportFault, text: str, way: str) -> None:
    (found,) = check_packages(replace(FIT, failed={"nibabel": ImportFailure(why, kind)}))
    assert (found.level, text in found.text, way in found.way_out) == ("error", True, True)


def test_a_package_that_is_too_old() -> None:
    found = check_packages(replace(FIT, versions={**FIT.versions, "zarr": "2.1"}, too_old={"zarr": "3.0"}))
    assert [item.text for item in found if item.level == "error"] == ["zarr 2.1 is too old: hpc-tumor needs 3.0"]


def test_torchvision_of_another_torch() -> None:
    found = check_packages(replace(FIT, versions={**FIT.versions, "torchvision": "0.21.0"}))
    assert [item.level for item in found] == ["ok", "ok", "warning"]
    assert found[-1].way_out == 'pip install "torchvision==0.29.*"'


def test_a_node_with_another_environment() -> None:
    assert compare_packages(FIT, replace(FIT, host="gpu001")) == []
    (found,) = compare_packages(FIT, replace(FIT, versions={**FIT.versions, "torch": "2.6.0"}))
    assert (found.level, "torch 2.6.0 (here 2.14.1)" in found.text) == ("warning", True)
    (found,) = compare_packages(FIT, replace(FIT, executable="/usr/bin/python3", python="3.9.2"))
    assert found.level == "error"
