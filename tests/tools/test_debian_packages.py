"""Packages for the tests: installed where that may be, else the way is said and nothing fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
import debian_packages  # noqa: E402

ALL = "texlive-latex-recommended chromium chromium-driver"


@pytest.fixture
def apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but an apt-get that writes down how it was called, and fails where told to."""
    script = tmp_path / "apt-get"
    script.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\necho output\ntest ! -e {tmp_path}/fail\n')
    script.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(script) if name == "apt-get" else None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return script


def test_what_is_missing_is_installed(apt_get: Path, capsys: pytest.CaptureFixture[str]) -> None:
    debian_packages.main()
    update, install = (apt_get.parent / "calls").read_text().splitlines()
    assert update.endswith(" -y update")
    assert install.endswith(f" -y install --no-install-recommends {ALL}")
    assert capsys.readouterr().err == f"installing {ALL} ...\n"


def test_without_root_or_with_apt_failing_the_way_is_said(
    apt_get: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (apt_get.parent / "fail").touch()
    debian_packages.main()
    assert (
        "output\npdflatex, chromium, chromedriver: not installed, and apt-get update failed" in capsys.readouterr().err
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    debian_packages.main()
    said = capsys.readouterr().err
    assert said.startswith("pdflatex, chromium, chromedriver: not installed, and only root may install it.")
    assert said.endswith(f"apt-get install --no-install-recommends {ALL}\n")


def test_a_latex_without_booktabs_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in (("pdflatex", 0), ("chromium", 0), ("chromedriver", 0), ("kpsewhich", 1)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    debian_packages.main()
    assert capsys.readouterr().err.startswith("booktabs.sty: not installed, and ")
    (tmp_path / "kpsewhich").write_text("#!/bin/sh\nexit 0\n")
    debian_packages.main()
    assert capsys.readouterr().err == ""


def test_the_script_ends_well(tmp_path: Path) -> None:
    code = "import os, runpy, sys; os.geteuid = lambda: 1; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", code, str(TOOLS / "debian_packages.py")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "not installed" in done.stderr
