"""Programs that are not Python packages: without one a test is skipped, or fails if they are required."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {"pdflatex": "texlive-latex-recommended", "chromium": "chromium", "chromedriver": "chromium-driver"}


def program(name: str) -> str:
    """Return the path of a program. Without it the test is skipped, or fails with HPC_TUMOR_REQUIRE_PROGRAMS=1."""
    path = shutil.which(name)
    if path is None:
        message = f"no {name} on the PATH: install Debian's package {PACKAGES[name]}"
        if os.environ.get("HPC_TUMOR_REQUIRE_PROGRAMS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path
