"""Output of commands: help, JSON, and the messages for about 150 mistakes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from made_runs import segmentation_run, unfinished_run
from recording import RECORD, RECORDED, VERSIONS, Command, compare, outline, plain, replay, versions
from sites import ORFEO
from surroundings import kept, write_programs

from hpc_tumor.cli import app
from hpc_tumor.cluster.plan import fit
from hpc_tumor.settings import shipped


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group of commands below one, with the words that call it."""
    yield path, group
    for name, child in getattr(group, "commands", {}).items():
        yield from commands(child, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def test_help_of_every_command(command: Command) -> None:
    shown = []
    for path in ALL:
        code, out, errors = command([*path, "--help"])
        assert (code, errors) == (0, "")
        shown.append(f"$ {' '.join(('hpc-tumor', *path, '--help'))}\n{out.strip()}\n")
    compare("help.txt", "\n\n".join("\n".join(line.rstrip() for line in text.splitlines()) for text in shown))


# -- mistakes ---------------------------------------------------------------------------------------------------------

JOBS = {
    "torn": "[sweep\n", "unknown": 'model = "unet"\nepoch = 3\n', "model": 'model = "u-net"\n', "number": "model = 3\n",
    "scalar": 'model = "unet"\n[sweep]\nseed = 3\n', "section": 'model = "unet"\nrecipe = 3\n',
    "task": 'model = "unet"\ntask = "segmentation"\n', "sweep": 'sweep = 3\n', "value": "[sweep]\nepochs = [1, 0]\n",
    "twice": 'model = "unet"\n[sweep]\nseed = [1, 2]\n[random]\nruns = 2\n"seed" = [1, 2]\n',
    "none": 'model = "unet"\n[random]\nruns = 3\n', "many": "[random]\nruns = 100000\nlearning_rate = [1]\n",
    "range": "[random]\nruns = 3\nlearning_rate = { low = 3, high = 1 }\n",
    "kind": "[random]\nruns = 3\nlearning_rate = 0.1\n",
}  # fmt: skip
PROFILES = {
    "torn": "[slurm\n", "unknown": 'description = ""\n[node]\ngpu = 3\n',

    "wrong": 'description = ""\n[node]\ngpus = -1\n',
    "time": 'description = ""\n[limits]\nwalltime = "two hours"\n', "local": 'name = "local"\ndescription = ""\n',
    "option": 'description = ""\n[slurm]\nextra = { output = "x" }\n', "bare": "[node]\ngpus = 1\n",
    "lines": 'description = ""\n[slurm]\npartition = "a\\nb"\n',
    "variable": 'description = ""\n[environment]\nvariables = { "A-B" = "1" }\n',
}  # fmt: skip
SPLITS = {
    "torn.json": "{", "list.json": "[]", "newer.json": '{"schema": 99}', "empty.json": '{"schema": 1, "parts": {}}',
    "parts.json": '{"schema": 1, "parts": {"train": ["BraTS20_Training_001"], "holdout": []}}',
    "unknown.json": '{"schema": 1, "parts": {"train": ["BraTS20_Training_009"], "test": ["BraTS20_Training_001"]}}',
    "leaks.json": '{"schema": 1, "parts": {"train": ["BraTS20_Training_001"], "test": ["BraTS20_Training_001"]}}',
    "mixed.json": '{"schema": 1, "parts": {"train": ["BraTS20_Training_001"], "test": [["BraTS20_Training_002", 3]]}}',
    "columns.csv": "case,side\nBraTS20_Training_001,train\n", "part.csv": "id,part\nBraTS20_Training_001,exam\n",
}  # fmt: skip
FINISHED, FAILED, STOPPED, DAMAGED = (
    f"20260101-00000{number}-{name}"
    for number, name in enumerate(("unet-aaaaaa", "cnn-bbbbbb", "unet-cccccc", "vit-dddddd"))
)


def trained_run(target: Path) -> None:
    """A finished run with its weights."""
    kept(target.parent / "kept", "2026-11-30")
    (run,) = (target.parent / "kept" / "finished").iterdir()
    run.rename(target)
    shutil.rmtree(target.parent / "kept")


@pytest.fixture
def mistakes(work: Path) -> Path:
    """Write faulty stores, job files, profiles, split files and runs."""
    shutil.rmtree(work / "raw-brats-h5")
    for folder, files in (("jobs", JOBS), ("profiles", PROFILES), ("splits", SPLITS)):
        (work / folder).mkdir()
        for name, text in files.items():
            (work / folder / (name if "." in name else f"{name}.toml")).write_text(text)
    for name in ("empty", "newer.zarr", "torn.zarr", "other.zarr", "outputs", "runs", "no-runs", "one-file"):
        (work / name).mkdir()
    (work / "file.txt").write_text("a text\n")
    (work / "one-file" / "notes.txt").write_text("a text\n")
    about = json.loads((work / "brats.zarr" / "zarr.json").read_text())
    (work / "other.zarr" / "zarr.json").write_text(json.dumps({**about, "attributes": {}}))
    about["attributes"]["hpc_tumor"]["schema"] = 99
    (work / "newer.zarr" / "zarr.json").write_text(json.dumps(about))
    (work / "torn.zarr" / "zarr.json").write_text("{")
    shutil.copytree(work / "brats.zarr", work / "gap.zarr")
    shutil.rmtree(work / "gap.zarr" / "index")
    shutil.copytree(work / "raw-brats" / "BraTS20_Training_001", work / "lacking" / "BraTS20_Training_001")
    (work / "lacking" / "BraTS20_Training_001" / "BraTS20_Training_001_t1ce.nii.gz").unlink()
    shutil.copytree(work / "raw-brats" / "BraTS20_Training_001", work / "torn" / "BraTS20_Training_001")
    (work / "torn" / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii.gz").write_bytes(b"not a scan")
    shutil.copytree(work / "raw-brain-mri" / "Training" / "glioma", work / "one-class" / "glioma")
    (work / "outputs" / "cnn.onnx").write_text("mine")
    trained_run(work / "runs" / FINISHED)
    for name, task in ((FAILED, "classification"), (STOPPED, "segmentation"), (DAMAGED, "classification")):
        unfinished_run(work / "runs", name, task)
    failure = work / "runs" / FAILED / "logs" / "failure.0.json"
    failure.parent.mkdir()
    failure.write_text('{"rank": 0, "reason": "a reason", "expected": true}')
    (work / "runs" / DAMAGED / "config.json").write_text("{")
    return work


def paths_of(folder: Path) -> dict[str, int]:
    """Size of everything below a folder, by path; that of folders is 0."""
    found = {}
    for place, folders, files in os.walk(folder):
        found |= dict.fromkeys((f"{place}/{name}" for name in folders), 0)
        found |= {f"{place}/{name}": os.lstat(f"{place}/{name}").st_size for name in files}
    return found


@pytest.mark.slow
def test_mistakes(command: Command, mistakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends with its message and exit code, changes nothing and leaves nothing."""
    before = paths_of(mistakes)

    class Guarded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, arguments: Any, **options: Any) -> None:
            assert sys.executable not in arguments, "a run began that should have been refused"
            super().__init__(arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", Guarded)

    def run(arguments: list[str]) -> tuple[int, str, str]:
        code, out, errors = command(arguments)
        assert "Traceback" not in errors
        assert paths_of(mistakes) == before, f"{arguments} changed what was there"
        return code, out, errors

    replay("mistakes.txt", run)


# -- results as JSON --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_json_of_every_command(command: Command, work: Path, fake_slurm: Path) -> None:
    """One after another, on a cluster that takes a job and lets it wait; the last on a larger one."""
    made = work / "made-up" / "runs"
    trained_run(work / "trained" / FINISHED)
    segmentation_run(made, FINISHED, [[0.8, 0.7, 0.9]] * 3)
    unfinished_run(made, FAILED, "classification")
    covered = set()

    def run(arguments: list[str]) -> tuple[int, str, str]:
        if "discover" in arguments:
            commands = {name: text if "case" in text else f"cat <<'END'\n{text}END" for name, text in ORFEO.items()}
            write_programs(fake_slurm, commands)
        code, out, errors = command(arguments)
        covered.add(tuple(word for word in arguments[1:3] if word in ("clusters", "discover")) or (arguments[1],))
        if "doctor" in arguments:  # what it finds is the machine's
            found = json.loads(out)
            findings = {key for section in found["sections"] for item in section["findings"] for key in item}
            sections = [section["section"] for section in found["sections"]]
            out = plain(dict.fromkeys(found) | {"sections": sections, "findings": sorted(findings)})
        if "clean" in arguments:  # the largest first, by some bytes
            found = json.loads(out)
            out = plain(found | {"runs": sorted(found["runs"], key=lambda item: (item["run"], item["state"]))})
        if arguments[1] in ("predict", "export"):  # what a network computes
            out = outline(json.loads(out))
        if arguments[1:3] == ["clusters", "--json"]:  # so is the first profile
            out = json.dumps(json.loads(out)[1:], indent=2, ensure_ascii=False)
        return code, out, errors

    replay("json.txt", run)
    takers = {path for path, found in ALL.items() if any(option.name == "json" for option in found.params)}
    assert covered == takers


# -- job scripts ------------------------------------------------------------------------------------------------------

PROFILE_FILES = sorted(shipped("slurm_templates").glob("*.toml"))


@pytest.mark.parametrize("runs", [1, 21], ids=["job", "array"])
@pytest.mark.parametrize("profile", PROFILE_FILES, ids=[path.stem for path in PROFILE_FILES])
def test_script_of_every_profile(command: Command, profile: Path, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a whole node of it; and for 21 runs, of which four go at once."""
    monkeypatch.setenv("HPC_TUMOR_ACCOUNT", "physics")
    monkeypatch.setattr(fit, "installed_build", lambda: None)  # no torch has code for the GPUs of all profiles
    gpus = max(tomllib.loads(profile.read_text())["node"]["gpus"], 1)
    arguments = f"submit --model unet --data brats.zarr --gpus {gpus} --cluster {profile.stem} --dry-run".split()
    if runs > 1:
        arguments += [*("--at-once", "4"), *(word for seed in range(runs) for word in ("--seed", str(seed)))]
    code, script, errors = command(arguments)
    assert code == 0, errors
    compare(f"scripts/{profile.stem}.{'array' if runs > 1 else 'job'}.sh", script, wrapped=False)
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)


def test_no_script_is_on_record_of_a_profile_that_is_not_shipped() -> None:
    assert {path.name.partition(".")[0] for path in (RECORDED / "scripts").iterdir()} == {p.stem for p in PROFILE_FILES}


def test_versions_of_the_libraries_that_write_what_is_on_record() -> None:
    """Not compared: `recording.py` says them where something differs, and bytes are compared where they agree."""
    if RECORD:
        compare(VERSIONS, versions())
    assert (RECORDED / VERSIONS).is_file()
