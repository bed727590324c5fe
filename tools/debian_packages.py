#!/usr/bin/env python3
"""Install Debian packages with programs that the tests call.

    tools/debian_packages.py         install Chromium and LaTeX for the tests of reports and tables

Installing needs root and apt-get. If that fails, the command to run by hand is printed, and those tests are skipped.
Downloads about 180 MB and takes 600 MB of disk; installed packages are skipped. Exit code: always 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

LATEX = "texlive-latex-recommended"  # the smallest package with booktabs
PACKAGES = {"pdflatex": LATEX, "chromium": "chromium", "chromedriver": "chromium-driver"}


class InstallError(Exception):
    """Nothing was installed; the message is the reason, without a capital or a full stop."""


def install(packages: Sequence[str]) -> None:
    """Install `packages` without their recommendations.

    Raises:
        InstallError: there is no apt-get, this is not root, or apt-get failed and printed its last lines on stderr.
    """
    path = shutil.which("apt-get", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        raise InstallError("there is no apt-get")
    if os.geteuid() != 0:
        raise InstallError("only root may install it")
    say(f"installing {' '.join(packages)} ...")
    apt = [path, "-o", "DPkg::Lock::Timeout=120", "-q", "-y"]
    for command in (["update"], ["install", "--no-install-recommends", *packages]):
        done = subprocess.run(
            apt + command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode:
            say("\n".join(done.stdout.splitlines()[-15:]))
            raise InstallError(f"apt-get {command[0]} failed (see above)")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _missing() -> dict[str, str]:
    missing = {program: package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if "pdflatex" not in missing and not _has_booktabs():
        missing["booktabs.sty"] = LATEX
    return missing


def _has_booktabs() -> bool:
    finder = shutil.which("kpsewhich")  # comes with pdflatex
    return finder is None or not subprocess.run([finder, "booktabs.sty"], capture_output=True, check=False).returncode


def main() -> None:
    if not (missing := _missing()):
        return
    try:
        install(list(missing.values()))
    except InstallError as error:
        names, packages = ", ".join(missing), " ".join(missing.values())
        say(f"{names}: not installed, and {error}. Tests that need this cannot run.")
        say(f"By hand, on Debian: apt-get install --no-install-recommends {packages}")


if __name__ == "__main__":
    main()
