"""Programs that are no Python packages: a test without one is skipped, or fails where they are asked for."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {"pdflatex": "texlive-latex-recommended", "chromium": "chromium", "chromedriver": "chromium-driver"}


def program(name: str) -> str:
    """Path of the program `name`. Without it the test is skipped, or fails where HPC_TUMOR_REQUIRE_PROGRAMS=1."""
    path = shutil.which(name)
    if path is None:
        message = f"no {name} on the PATH: install Debian's package {PACKAGES[name]}"
        if os.environ.get("HPC_TUMOR_REQUIRE_PROGRAMS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path
