"""The command line: what it refuses and how, its exit codes, its streams, and what it must not load."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import typer

import hpc_tumor
from hpc_tumor import cli
from hpc_tumor.cli.control import raise_failures
from hpc_tumor.cluster.node.local_queue import take_ticket
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.cluster.plan import fit
from hpc_tumor.config import Experiment
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import READERS
from hpc_tumor.errors import PartialFailure, TrainingError, UsageError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import torch_builds
from hpc_tumor.system.torch_builds import TorchBuild

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """brats.zarr and brain-mri.zarr, beside the made-up raw data that they were made from."""
    folder = tmp_path_factory.mktemp("data")
    make_phantom(folder / "raw-brats", "brats", 3, seed=1, shape=(32, 32, 12))
    make_phantom(folder / "raw-brain-mri", "brain-mri", 20, seed=1)
    for kind in ("brats", "brain-mri"):
        prepare_dataset(READERS[kind](), folder / f"raw-{kind}", folder / f"{kind}.zarr", workers=1)
    newer = json.loads((folder / "brats.zarr" / "zarr.json").read_text())
    newer["attributes"]["hpc_tumor"]["schema"] = 99
    (folder / "newer.zarr").mkdir()
    (folder / "newer.zarr" / "zarr.json").write_text(json.dumps(newer))
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(autouse=True)
def work(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory from which `data/` leads to the stores, on a machine without SLURM."""
    for name in [name for name in os.environ if name.startswith("HPC_TUMOR_") and name != "HPC_TUMOR_CACHE_DIR"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path / "configuration"))
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    profiles = tmp_path / "configuration" / "clusters"
    profiles.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "cluster" / "local-test.toml", profiles)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "data").symlink_to(data)
    monkeypatch.chdir(folder)
    return folder


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def snapshot(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# -- what is refused --------------------------------------------------------------------------------------------------

UNET = ("submit", "--model", "unet", "--data", "data/brats.zarr")


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("submit", "--model", "u-net", "--data", "data/brats.zarr"), 2, ("unknown model 'u-net'", "'unet'", "vgg16")),
        ((*UNET, "--set", "epoch=2"), 2, ("unknown setting 'epoch'", "recipe.epochs")),
        ((*UNET, "--set", "recipe.epochs=none"), 2, ("recipe.epochs = 'none'", "integer")),
        ((*UNET, "--cluster", "orfeo"), 2, ("unknown cluster profile 'orfeo'", "'orfeo-", "leonardo-booster")),
        ((*UNET, "--gpus", "0"), 2, ("--gpus 0", "at least 1")),
        ((*UNET, "--gpus", "3", "--cluster", "local-test"), 2, ("--gpus 3", "2 GPUs", "2 or 4")),
        ((*UNET, "--gpus", "6", "--cluster", "orfeo-gpu"), 2, ("--gpus 6", "at most 2 nodes", "4")),
        ((*UNET, "--cluster", "orfeo-gpu"), 2, ("--account", "orfeo-gpu")),
        ((*UNET, "--cluster", "local-test", "--memory", "4000"), 2, ("4000 GB",)),
        ((*UNET, "--cluster", "local-test"), 4, ("no sbatch", "--cluster local")),
        ((*UNET, "--debug", "--cluster", "local-test"), 2, ("--debug", "leave out --cluster local-test")),
        ((*UNET, "--debug", "--gpus", "2"), 2, ("--debug trains one run in one process", "2 GPUs")),
        ((*UNET, "--model", "improved-unet", "--debug"), 2, ("2 runs",)),
        ((*UNET, "--set", "image_size=100"), 2, ("image_size = 100 does not fit unet", "96 or 112")),
        ((*UNET, "--set", "image_size=100", "--dry-run"), 2, ("image_size = 100",)),
        ((*UNET, "--set", "image_size=100", "--debug"), 2, ("image_size = 100",)),
        ((*UNET, "--set", "fold=0"), 3, ("5 folds need at least 5",)),
        ((*UNET, "--debug", "--dry-run"), 2, ("--debug", "leave out --dry-run")),
        ((*UNET, "--debug", "--time", "1h"), 2, ("--time", "--debug")),
        ((*UNET, "--overfit", "9"), 2, ("--overfit", "needs --debug")),
        ((*UNET, "--anomaly", "--dry-run"), 2, ("--anomaly", "needs --debug")),
        ((*UNET, "--debug", "--overfit", "0"), 2, ("--overfit",)),
        ((*UNET, "--accumulate", "0"), 2, ("--accumulate: hardware.accumulate = 0",)),
        ((*UNET, "--profile", "--set", "profile=false"), 2, ("--profile and --set profile",)),
        ((*UNET, "--time", "1h"), 2, ("--time", "this machine")),
        ((*UNET, "--gpus", "1000", "--cluster", "local-test"), 2, ("--gpus 1000", "local-test", "at most 2 nodes")),
        ((*UNET, "--set", "store=x.zarr"), 2, ("--data and --set data.store",)),
        (("logs", "all", "--runs", "data/empty"), 2, ("no runs in data/empty yet",)),
        ((*UNET, "--job", "nowhere.toml"), 2, ("nowhere.toml does not exist",)),
        ((*UNET, "--gpu", "2"), 2, ("No such option", "--gpu")),
        (("submit", "--model", "unet"), 2, ("no store given", "--data")),
        (("submit", "--data", "data/brats.zarr"), 2, ("no model given", "attention-unet")),
        (("submit", "--model", "unet", "--data", "data/none.zarr"), 3, ("there is no store data/none.zarr", "prepare")),
        (("submit", "--model", "unet", "--data", "data/empty"), 3, ("data/empty is not a store",)),
        (("submit", "--model", "unet", "--data", "data/newer.zarr"), 3, ("schema 99", "reads 2", "Update")),
        (("submit", "--model", "cnn", "--data", "data/brats.zarr"), 3, ("cnn does classification", "segmentation")),
        (("submit", "--model", "unet", "--data", "data/brain-mri.zarr"), 3, ("unet does segmentation",)),
        (("prepare-data", "data/empty", "new.zarr"), 3, ("data/empty",)),
        (("prepare-data", "data/nowhere", "new.zarr"), 3, ("data/nowhere",)),
        (("prepare-data", "data/raw-brats", "new.zarr", "--dataset", "mri"), 2, ("unknown dataset", "brain-mri")),
        (("prepare-data", "data/raw-brats", "new.zarr", "--dataset", "brain-mri"), 3, ("data/raw-brats",)),
        (("prepare-data", "data/raw-brats", "new.zarr", "--workers", "0"), 2, ("--workers 0",)),
        (("phantom", "new", "--dataset", "bratz", "--cases", "1"), 2, ("'bratz'", "Did you mean 'brats'")),
        (("phantom", "new", "--dataset", "brats", "--cases", "0"), 2, ("--cases",)),
        (("phantom", "new", "--dataset", "brats", "--cases", "1", "--shape", "9x9"), 2, ("--shape '9x9'",)),
        (("phantom", "data/raw-brats", "--dataset", "brats", "--cases", "1"), 2, ("is not empty",)),
        (("status", "--runs", "nowhere"), 2, ("no runs folder at nowhere", "with --runs")),
        (("predict", "unet", "data", "-o", "new", "--runs", "nowhere"), 2, ("folder at nowhere", "with --runs")),
        (("collect", "nowhere"), 2, ("no runs folder at nowhere", "with --runs")),
        (("logs", "unet", "--runs", "data/empty"), 2, ("no run in data/empty matches 'unet'",)),
        (("cancel",), 2, ("RUN",)),
        (("statu",), 2, ("No such command 'statu'", "status")),
    ],
)  # fmt: skip
def test_what_is_refused(
    arguments: tuple[str, ...], code: int, parts: tuple[str, ...], capsys: Captured, work: Path, data: Path
) -> None:
    before = snapshot(work), snapshot(data)
    assert cli.main(list(arguments)) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    errors = shown.err[shown.err.index("error: ") :]
    assert len(errors.splitlines()) <= 2, errors
    assert all(part in errors for part in parts), errors
    assert "Traceback" not in shown.err
    assert (snapshot(work), snapshot(data)) == before


def test_one_bad_case_among_many_is_named_and_the_rest_converted(capsys: Captured, work: Path, data: Path) -> None:
    raw = work / "raw"
    for path in sorted((data / "raw-brain-mri").rglob("*.jpg")):
        target = raw / path.relative_to(data / "raw-brain-mri")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    bad = sorted(raw.rglob("*.jpg"))[3]
    bad.write_bytes(b"this is not an image")
    assert cli.main(["prepare-data", "raw", "new.zarr", "--workers", "1", "--json"]) == 3
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert (summary["cases"], len(summary["failed"])) == (19, 1)
    assert bad.name in shown.err
    assert "1 of 20 cases could not be converted" in shown.err
    bad.unlink()
    assert cli.main(["prepare-data", "raw", "new.zarr", "--workers", "1"]) == 0
    assert "19 unchanged" in capsys.readouterr().out


def test_a_truncated_patient_is_refused_by_name_and_nothing_is_left(capsys: Captured, work: Path, data: Path) -> None:
    raw = work / "raw" / "BraTS20_Training_001"
    raw.mkdir(parents=True)
    for path in (data / "raw-brats" / raw.name).iterdir():
        (raw / path.name).write_bytes(path.read_bytes()[: 200 if "t1ce" in path.name else None])
    before = snapshot(work)
    assert cli.main(["prepare-data", "raw", "new.zarr", "--workers", "1"]) == 3
    error = capsys.readouterr().err
    assert "BraTS20_Training_001_t1ce.nii.gz" in error
    assert "Traceback" not in error
    assert not [path for path in snapshot(work) - before if path.name == "0"]  # no image was committed


# -- streams and formats ----------------------------------------------------------------------------------------------


def test_json_of_every_command_that_shows_a_result(capsys: Captured, work: Path) -> None:
    (work / "runs").mkdir()
    commands = {
        ("phantom", "raw", "--dataset", "brats", "--cases", "1", "--shape", "32,32,12"): dict,
        ("prepare-data", "raw", "new.zarr", "--workers", "1"): dict,
        (*UNET, "--cluster", "local-test", "--gpus", "4", "--dry-run"): list,
        ("status",): list,
        ("clusters",): list,
        ("collect",): dict,
    }
    for command, kind in commands.items():
        assert cli.main([*command, "--json"]) == 0, command
        assert isinstance(json.loads(capsys.readouterr().out), kind), command


def test_a_dry_run_prints_the_script_and_writes_nothing(
    capsys: Captured, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "installed_build", lambda: TorchBuild("2.14.1+cu126", "12.6"))
    before = snapshot(work)
    assert cli.main([*UNET, "--gpus", "4", "--cluster", "orfeo-gpu", "--account", "dssc", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("#!/bin/bash")
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --account=dssc", "#SBATCH --gres=gpu:"):
        assert line in shown.out
    assert "2 nodes × 2 GPUs" in shown.err
    assert "Nothing was submitted" in shown.err
    assert snapshot(work) == before


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a group with the words that call it; a group that runs by itself is one, too."""
    if path:
        yield path, group
    for name, child in getattr(group, "commands", {}).items():
        yield from commands(child, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_examples_that_can_be_typed_and_no_types_of_python(path: tuple[str, ...], capsys: Captured) -> None:
    assert cli.main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert not re.search(r"<\w+|\b(TEXT|INTEGER|FLOAT|BOOLEAN)\b", shown)
    examples = re.findall(r"^(?:Example: )?hpc-tumor (.*)", COMMANDS[path].help or "", re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert tuple(words[: len(path)]) == path
        COMMANDS[path].make_context(" ".join(path), words[len(path) :])  # raises where it cannot be parsed


def test_a_letter_stands_for_one_option_in_all_commands() -> None:
    meanings: dict[str, set[str]] = {}
    for parameter in (parameter for command in COMMANDS.values() for parameter in command.params):
        for name in parameter.opts if parameter.param_type_name == "option" else ():
            meanings.setdefault(name, set()).add(max(parameter.opts, key=len))
    assert {name: options for name, options in meanings.items() if len(options) > 1} == {}


def test_without_slurm_a_run_stays_here_and_says_so(capsys: Captured) -> None:
    assert cli.main([*UNET, "--dry-run"]) == 0
    assert "no sbatch here" in capsys.readouterr().err


def test_verbose_adds_the_traceback(capsys: Captured) -> None:
    for option, expected in (((), False), (("--verbose",), True)):
        assert cli.main(["submit", "--model", "nonet", *option]) == 2
        error = capsys.readouterr().err
        assert ("Traceback" in error) is expected
        assert "error: unknown model 'nonet'" in error


def test_what_was_not_foreseen_is_one_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("hpc_tumor.cluster.describe.profiles.list_profiles", fail)
    assert cli.main(["clusters"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "error: ZeroDivisionError: division by zero"
    assert "--verbose" in error[1]
    assert len(error) == 2


def test_a_full_disk_below_the_output_is_one_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("hpc_tumor.cluster.describe.profiles.list_profiles", MagicMock(side_effect=full))
    assert cli.main(["clusters"]) == 1
    assert capsys.readouterr().err == "error: cannot write the output: no space left on the device.\n"


def test_interrupted(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hpc_tumor.cluster.describe.profiles.list_profiles", interrupt)
    assert cli.main(["clusters"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"'{sys.executable}' -m hpc_tumor clusters | :"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""


def test_a_stream_that_is_closed_is_no_error() -> None:
    for closed in (">&-", "2>&-"):
        command = f"'{sys.executable}' -m hpc_tumor clusters {closed}"
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


PLAIN = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "an ASCII locale": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("variables", PLAIN.values(), ids=list(PLAIN))
def test_help_and_tables_on_a_terminal_without_unicode(variables: dict[str, str]) -> None:
    for arguments in (("submit", "--help"), ("clusters",)):
        done = subprocess.run(
            [sys.executable, "-m", "hpc_tumor", *arguments], env={**os.environ, **variables}, capture_output=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert len(done.stdout.splitlines()) > 5
        assert done.stdout.decode(variables.get("PYTHONIOENCODING", "ascii"))


@pytest.mark.parametrize("columns", ["0", "1", "-80", "wide"])
def test_help_whatever_the_width_that_is_claimed(columns: str) -> None:
    done = python("-m", "hpc_tumor", "status", "--help", COLUMNS=columns, TERMINAL_WIDTH=columns)
    assert done.returncode == 0, done.stderr
    assert "Usage: hpc-tumor status" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("variables", PLAIN.values(), ids=list(PLAIN))
def test_whatever_the_terminal_commands_end_well_and_files_are_utf_8(variables: dict[str, str], work: Path) -> None:
    store = "données.zarr"
    (work / store).symlink_to(work / "data" / "brain-mri.zarr")
    run = work / "runs" / "20260101-000000-cnn-aaaaaa"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"task": "classification", "data": {"store": "données.zarr"}}', encoding="utf-8")
    for arguments, codes in {
        ("audit", store, "--output", "audit.html"): (0, 3),
        ("doctor", "--cluster", "local"): (0, 1),
        ("collect", "--output", "résultats"): (0,),
        ("collect", "--json"): (0,),
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "hpc_tumor", *arguments], env={**os.environ, **variables}, capture_output=True,
            check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode in codes, done.stderr
        assert b"Unexpected error" not in done.stderr
        assert done.stdout
    assert run.name in json.loads(done.stdout)["unfinished"][0]["run"]
    written = [work / "audit.html", *(work / "résultats").glob("*.*")]
    assert len(written) > 4
    for path in written:
        path.read_text(encoding="utf-8")
    assert "données" in (work / "audit.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_colours_only_on_a_terminal_that_wants_them() -> None:
    assert "\x1b" not in python("-m", "hpc_tumor", "clusters").stdout
    assert "\x1b" in _on_a_terminal()
    assert "\x1b" not in _on_a_terminal(NO_COLOR="1").replace("\x1b[1m", "")  # bold is no colour


def _on_a_terminal(**variables: str) -> str:
    leader, follower = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "hpc_tumor", "submit", "--model", "x"], stdin=follower, stdout=follower,
        stderr=follower, env={**os.environ, "TERM": "xterm", **variables}, check=False, timeout=60,
    )  # fmt: skip
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    return shown


# -- surroundings that lack something ---------------------------------------------------------------------------------

# What Python imports first: a machine that does not know the user, and a file system without locks.
NO_USER = "import pwd\n\ndef getpwuid(uid):\n    raise KeyError('uid not found: 54321')\n\npwd.getpwuid = getpwuid\n"
NO_LOCKS = (
    "import errno, fcntl\n\ndef flock(*_):\n    raise OSError(errno.ENOSYS, 'Function not implemented')\n\n"
    "fcntl.flock = flock\n"
)


def on_a_machine(folder: Path, lacking: str, *arguments: str, without: str = "") -> tuple[int, list[str]]:
    """Exit code of a command and what it said, where Python's modules are without something, or a variable is."""
    (folder / "sitecustomize.py").write_text(lacking)
    top = str(Path(hpc_tumor.__file__).parent.parent)
    variables = {name: value for name, value in os.environ.items() if name != without}
    variables |= {"PYTHONPATH": f"{folder}{os.pathsep}{top}", "HPC_TUMOR_HINTS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "hpc_tumor", *arguments], env=variables, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


@pytest.mark.slow
def test_without_a_home(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, and a user whom the machine does not know, as in a container."""
    for arguments in (("status",), ("doctor",), (*UNET, "--dry-run")):
        monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", "")
        code, said = on_a_machine(tmp_path, NO_USER, *arguments, without="HOME")
        lines = [line for line in said if "no configuration directory: HOME is not set" in line]
        assert (code, len(lines)) == (2, 1), (arguments, said)
        assert said[-1] == lines[0]
        monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path))
        code, said = on_a_machine(tmp_path, NO_USER, *arguments, without="HOME")
        assert "RuntimeError" not in "".join(said)
        assert "KeyError" not in "".join(said)
    for option in (("--runs", "~/runs"), ("--cluster", "~/mine.toml")):
        code, said = on_a_machine(tmp_path, NO_USER, *UNET, "--dry-run", *option, without="HOME")
        assert (code, said[-1]) == (2, f"error: {option[1]} cannot be expanded: HOME is not set, and the user"
                                       " is unknown on this machine. Set HOME, or give the full path.")  # fmt: skip


def test_from_a_folder_that_was_removed(work: Path) -> None:
    here = f"cd '{work}/gone' && rmdir '{work}/gone' &&"
    top = str(Path(hpc_tumor.__file__).parent.parent)
    for arguments in ("status", "submit --model unet --data data/brats.zarr", "doctor", "export x -o y.onnx"):
        (work / "gone").mkdir()
        command = f"{here} exec '{sys.executable}' -m hpc_tumor {arguments}"
        done = subprocess.run(
            ["/bin/sh", "-c", command], env={**os.environ, "PATH": "/usr/bin:/bin", "PYTHONPATH": top},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr == (
            "error: the current folder is gone or cannot be read (No such file or directory): cd to another one.\n"
        )


def test_a_file_system_without_locks_is_named_and_nothing_is_left(work: Path, tmp_path: Path) -> None:
    before = snapshot(work)
    code, said = on_a_machine(tmp_path, NO_LOCKS, *UNET, "--cluster", "local")
    assert code == 2
    assert said[-1].startswith(
        f"error: the file system of {work / 'runs'} does not support locks (Function not implemented)"
    )
    assert said[-1].endswith("choose a folder on another file system with --runs.")
    assert snapshot(work) == before


# -- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("submit", "--help"),
        (*UNET, "--dry-run", "--cluster", "local-test"),
        ("status",),
        ("collect",),
        ("clusters",),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_torch_is_not_loaded(arguments: tuple[str, ...], work: Path) -> None:
    (work / "runs").mkdir()
    done = python(
        "-c", "import sys; from hpc_tumor.cli import main; code = main(sys.argv[1:]);"
        " sys.exit(code or 10 * ('torch' in sys.modules) or 11 * ('zarr' in sys.modules))",
        *arguments,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_submitting_here_does_not_load_torch(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, subprocess; from pathlib import Path; from hpc_tumor.cli import main;"
        f" code = main({[*UNET, '--cluster', 'local']!r}); loaded = 'torch' in sys.modules;"
        " main(['cancel', 'all', '--yes']); sys.exit(code or 10 * loaded)"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert "hpc-tumor status" in done.stderr  # the next commands to type
    (run,) = (work / "runs").glob("2*-unet-*")
    assert run.name in done.stdout


@pytest.mark.slow
def test_help_comes_at_once() -> None:
    def seconds_of_cpu() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "hpc_tumor", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds_of_cpu() for _ in range(5)) < 0.3


# -- what commands do with runs ---------------------------------------------------------------------------------------


def test_debugging_is_one_short_run_in_this_process(
    capsys: Captured, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def debug_run(experiment: object, run: RunDir, overfit: int | None, anomaly: bool) -> str:
        seen.append((experiment, run, os.getpid()))
        assert (overfit, anomaly) == (None, False)
        return "finished"

    monkeypatch.setitem(sys.modules, "hpc_tumor.training.inspect.debug", SimpleNamespace(debug_run=debug_run))
    assert cli.main([*UNET, "--debug"]) == 0
    ((experiment, run, pid),) = seen
    assert pid == os.getpid()
    assert (experiment.recipe.epochs, experiment.limit_batches) == (1, 3)  # type: ignore[attr-defined]
    assert run.provenance.is_file()
    assert run.path.parent == Path("runs/debug")
    capsys.readouterr()
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []  # not among the runs that are compared


def test_one_batch_that_is_not_learned_is_a_failure_and_no_result(capsys: Captured, work: Path) -> None:
    command = [*UNET, "--debug", "--overfit", "2", "--anomaly", "--set", "filters=4", "--set", "learning_rate=1e-9"]
    assert cli.main(command) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error: one batch was not learned in 2 steps" in shown.err
    assert "Traceback" not in shown.err
    (run,) = (work / "runs" / "debug").iterdir()
    assert not (run / "result.json").exists()
    assert cli.main(["status", "--runs", "runs/debug", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["state"] == "failed"
    assert "not learned" in told["reason"]
    assert cli.main(["collect", "runs/debug", "--json"]) == 0
    collected = capsys.readouterr().out
    assert run.name in collected
    assert [item["run"] for item in json.loads(collected)["unfinished"]] == [run.name]


def test_options_of_debugging_reach_it(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def debug_run(experiment: Experiment, run: RunDir, overfit: int | None, anomaly: bool) -> str:
        assert (experiment.hardware.accumulate, experiment.profile) == (2, True)
        assert not experiment.recipe.weight_decay
        assert (overfit, anomaly) == (7, True)
        return "learned"

    monkeypatch.setitem(sys.modules, "hpc_tumor.training.inspect.debug", SimpleNamespace(debug_run=debug_run))
    options = ("--overfit", "7", "--anomaly", "--accumulate", "2", "--profile")
    assert cli.main([*UNET, "--debug", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "learned"


def state(name: str, what: str) -> RunState:
    return RunState(RunDir(Path(name)), "local", "1", State(what), reason="because")


def test_having_waited_the_exit_code_says_how_it_went() -> None:
    raise_failures([state("a", "finished"), state("b", "finished")])
    with pytest.raises(PartialFailure, match=r"1 of 2 runs did not finish. The first: b failed: because"):
        raise_failures([state("a", "finished"), state("b", "failed")])
    with pytest.raises(TrainingError, match="a lost: because"):
        raise_failures([state("a", "lost")])
    with pytest.raises(TrainingError, match="2 of 2"):
        raise_failures([state("a", "failed"), state("b", "cancelled")])
    assert (PartialFailure.exit_code, TrainingError.exit_code) == (5, 1)


def test_a_run_that_ended_is_not_cancelled(capsys: Captured, work: Path) -> None:
    run = work / "runs" / "20260101-000000-unet-aaaaaa"
    run.mkdir(parents=True)
    (run / "result.json").write_text('{"run": "x"}')
    assert cli.main(["cancel", "aaaaaa"]) == 2
    assert "nothing to cancel" in capsys.readouterr().err
    assert cli.main(["resume", "aaaaaa"]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.fixture
def going(work: Path) -> Iterator[list[tuple[str, subprocess.Popen[bytes]]]]:
    """Names and processes of two runs on this machine: of improved-unet, which trains, and of unet, which waits."""
    made = []
    for name in ("20260101-000000-improved-unet-aaaaaa", "20260101-000001-unet-bbbbbb"):
        run = RunDir(work / "runs" / name)
        run.logs.mkdir(parents=True)
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)", str(run.submission)])
        run.job.write_text(json.dumps({"cluster": "local", "job_id": str(process.pid)}))
        run.add_event("submitted")
        made.append((name, process, take_ticket(run.path.parent, name)))
    yield [(name, process) for name, process, _ in made]
    for _, process, ticket in made:
        process.kill()
        process.wait()
        ticket.hand_over()


@pytest.mark.parametrize("pattern", ["all", "*unet*", "2026", "*bbb"])
def test_where_nobody_can_be_asked_patterns_need_yes(
    capsys: Captured, going: list[tuple[str, subprocess.Popen[bytes]]], pattern: str
) -> None:
    for verb in ("cancel", "rerun"):
        assert cli.main([verb, pattern]) == 2
        assert "Confirm with --yes" in capsys.readouterr().err
    assert [process.poll() for _, process in going] == [None, None]
    assert cli.main(["cancel", pattern, "--yes"]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("cancelled: hpc-tumor resume continues later.\n")
    assert len(shown.out.splitlines()) == 1
    assert going[1][0] in shown.out
    assert going[1][1].wait() == -signal.SIGTERM


@pytest.mark.parametrize("pattern", ["20260101-000001-unet-bbbbbb", "unet", "bbbbbb"])
def test_what_names_one_run_needs_no_question(
    capsys: Captured, going: list[tuple[str, subprocess.Popen[bytes]]], pattern: str
) -> None:
    assert cli.main(["cancel", pattern]) == 0
    sentence = "20260101-000001-unet-bbbbbb was cancelled: hpc-tumor resume continues later.\n"
    assert capsys.readouterr().out == sentence
    assert going[1][1].wait() == -signal.SIGTERM
    assert going[0][1].poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_the_last_table_on_the_screen(
    going: list[tuple[str, subprocess.Popen[bytes]]], number: signal.Signals
) -> None:
    leader, follower = pty.openpty()
    watching = subprocess.Popen(
        [sys.executable, "-m", "hpc_tumor", "status", "--watch"], stdin=follower, stdout=follower, stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    shown = ""
    while shown.count(going[1][0]) < 2:  # drawn, and drawn anew
        shown += os.read(leader, 100_000).decode()
    watching.send_signal(number)
    with contextlib.suppress(OSError):  # how Linux says that the other end was closed
        while piece := os.read(leader, 100_000).decode():
            shown += piece
    os.close(leader)
    assert watching.wait() == 130
    assert shown.rindex(going[1][0]) > shown.rindex("\x1b[2K")  # nothing was erased after it
    assert "The runs continue" in shown


def test_a_debug_run_refused_before_it_trains_leaves_nothing(
    capsys: Captured, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(experiment: object, run: RunDir, overfit: int | None, anomaly: bool) -> str:
        raise UsageError("no")

    monkeypatch.setitem(sys.modules, "hpc_tumor.training.inspect.debug", SimpleNamespace(debug_run=refuse))
    before = snapshot(work)
    assert cli.main([*UNET, "--debug"]) == 2
    assert snapshot(work) == before


def test_settings_are_refused_before_the_cluster_is_asked_for(capsys: Captured, work: Path, tmp_path: Path) -> None:
    sbatch = tmp_path / "no-programs" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.touch(mode=0o755)
    assert cli.main([*UNET, "--set", "epochs=0"]) == 2
    assert "--set: recipe.epochs = 0" in capsys.readouterr().err
    assert cli.main([*UNET]) == 2
    assert "choose its profile with" in capsys.readouterr().err


def test_hints_can_be_pasted(capsys: Captured, work: Path) -> None:
    arguments = ["--dataset", "brats", "--cases", "1", "--shape", "32,32,12"]
    assert cli.main(["phantom", "my raw; data", *arguments]) == 0
    assert "hpc-tumor prepare-data 'my raw; data' 'my raw; data.zarr'" in capsys.readouterr().err
    assert cli.main(["prepare-data", "my raw; data", "a b.zarr", "--workers", "1"]) == 0
    assert "--data 'a b.zarr'" in capsys.readouterr().err


def test_one_broken_profile_does_not_hide_the_others(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "configuration" / "clusters" / "broken.toml").write_text("[slurm\n")
    assert cli.main(["clusters"]) == 0
    shown = capsys.readouterr()
    assert "orfeo-gpu" in shown.out
    assert "broken.toml" in shown.err


def test_collect_takes_one_run_and_writes_nothing_for_none(capsys: Captured, work: Path) -> None:
    run = work / "runs" / "20260101-000000-unet-aaaaaa"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert cli.main(["collect", str(run)]) == 0
    assert run.name in capsys.readouterr().out
    (work / "papers").mkdir()
    (work / "papers" / "one.txt").write_text("x")
    assert cli.main(["collect", "papers", "--output", "results"]) == 0
    assert "no runs in papers: nothing was written" in capsys.readouterr().err
    assert not (work / "results").exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_torch_without_code_for_the_clusters_gpus_is_refused_before_anything_is_written(
    capsys: Captured, work: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    monkeypatch.setattr(fit, "installed_build", lambda: TorchBuild("2.14.1+cu130", "13.0"))
    monkeypatch.setattr(torch_builds.platform, "machine", lambda: "x86_64")
    before = snapshot(work)
    options = ["--cluster", "orfeo-gpu", "--account", "dssc", *(["--dry-run"] if dry_run else [])]
    assert cli.main([*UNET, *options]) == 2
    shown = capsys.readouterr()
    assert "V100 PCIe 32 GB of orfeo-gpu (compute capability 7.0): torch 2.14.1+cu130 has no code for" in shown.err
    assert "torch 2.6 to 2.14 with CUDA 12.6 (a build named +cu126)" in " ".join(shown.err.split())
    assert snapshot(work) == before
