"""The documentation: it builds, needs no network, and its tutorial does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from hpc_tumor.cli import app

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = CHECKOUT / "docs"
LOADS = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//", re.IGNORECASE)
BLOCK = re.compile(r"^```(bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as `mkdocs build --strict` makes them: a broken link or a page in no menu is an error."""
    folder = tmp_path_factory.mktemp("documents") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_pages_load_nothing_from_other_machines(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    assert [page.name for page in pages if LOADS.search(page.read_text(encoding="utf-8"))] == []
    styles = "".join(sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css"))
    assert not re.search(r"url\(\"?(?:https?:)?//|@import", styles)


def test_the_reference_is_made_from_the_code(site: Path) -> None:
    """Every place is filled, by commands, settings and folders as they are now."""
    pages = {page.stem: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert [name for name, page in pages.items() if "made from the code" in page] == []
    for name, words in {
        "commands": ("prepare-data", "--sbatch OPTION[=VALUE]", "clusters discover"),
        "settings": ("recipe.learning_rate", "slurm.gpu_request", "attention-unet"),
        "exit-codes": ("130", "Invalid data"),
        "store": ("label_counts", "brats-2024"),
        "run": ("result.json", "out-of-memory", "job_id"),
        "architecture": ("<svg", "experiments/", "checkpoints/"),
    }.items():
        assert [word for word in words if word not in pages[name]] == [], name


def test_the_readme_is_short_and_leads_to_pages_that_are_there() -> None:
    """Links of the files that are read on their own, outside the site."""
    assert len((CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
    for file in (*CHECKOUT.glob("*.md"), *DOCUMENTS.glob("decisions/*.md")):
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8"))
        assert [target for target in targets if not (file.parent / target).exists()] == [], file.name


def test_commands_on_all_pages_have_the_options_they_name() -> None:
    """In blocks and within sentences: a command or an option that was renamed is found here."""
    root: Any = typer.main.get_command(app)
    wrong = []
    for page in (*CHECKOUT.glob("*.md"), *DOCUMENTS.rglob("*.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"(?:^|`)hpc-tumor ([a-z][^`\n#]*)", text, re.MULTILINE):
            words, command = shlex.split(line), root
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
            unknown = {word.partition("=")[0] for word in words if word.startswith("-")} - known
            if command is root or unknown:
                wrong.append(f"{page.name}: hpc-tumor {line.strip()}")
    assert wrong == []


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    """Run the commands of the page, in order; the output it shows was printed, in that order, `…` for anything."""
    blocks = BLOCK.findall((DOCUMENTS / "tutorial.md").read_text(encoding="utf-8"))
    script = "\n".join(text for kind, text in blocks if kind == "bash")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, command in {
        "hpc-tumor": f'"{sys.executable}" -m hpc_tumor "$@"',
        "python3": f'"{sys.executable}" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {command}\n")
        (programs / name).chmod(0o755)
    work = tmp_path / "an empty folder"
    work.mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "HPC_TUMOR_CACHE_DIR" or not name.startswith("HPC_TUMOR_")
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=500,
        stdin=subprocess.DEVNULL,
        env={**kept, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "200",
             "HPC_TUMOR_CONFIG_DIR": str(work / "none")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    printed = done.stdout
    for kind, text in blocks:
        if kind == "text":
            pattern = ".*?".join(re.escape(part) for part in text.strip().split("…"))
            match = re.search(pattern, printed, re.DOTALL)
            assert match, f"{text}\nis not in\n{printed}"
            printed = printed[match.end() :]
    assert "<svg" in (work / "results" / "report.html").read_text(encoding="utf-8")
    assert (work / "audit.html").is_file()
    assert [path.name for path in (work / "predicted").glob("*.nii.gz")] == ["BraTS20_Training_001-seg.nii.gz"]
