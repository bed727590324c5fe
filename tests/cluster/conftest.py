"""Fixture `slurm`: a real SLURM that tools/slurm_cluster.py starts on this machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import faults
import pytest
from launching import wait_for
from local_slurm import alone, lock_file, shared, slurm_tool
from small_trainings import Launcher

from hpc_tumor.cluster.describe.facts import Facts, read_facts
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.run_dir import RunDir


def pytest_itemcollected(item: pytest.Item) -> None:
    if "slurm" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Environment in which SLURM's commands reach the test cluster. The last session that uses it stops it if a
    test has started it.

    If it cannot be started (no root, no packages, another SLURM) the tests are skipped. With
    HPC_TUMOR_REQUIRE_SLURM=1 they fail instead, and missing packages are installed.
    """
    required = os.environ.get("HPC_TUMOR_REQUIRE_SLURM") == "1"
    with lock_file("users").open("a+") as users:
        with suppress(BlockingIOError):  # nobody else uses it: the content is from a session that was killed
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            users.truncate(0)
        fcntl.flock(users, fcntl.LOCK_SH)
        with shared():
            was_up = slurm_tool("status").returncode == 0
            started = slurm_tool("up") if required else slurm_tool("up", "--no-install")
        if started.returncode:
            message = started.stderr.strip()
            if required or started.returncode != 4:  # 4: it cannot be started here
                pytest.fail(f"tools/slurm_cluster.py up ended with {started.returncode}: {message}")
            pytest.skip(f"no local SLURM ({message}); HPC_TUMOR_REQUIRE_SLURM=1 as root installs one")
        if not was_up:
            users.write("started by a test\n")
            users.flush()
        conf = started.stdout.strip().removeprefix("export SLURM_CONF=")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        yield {**inherited, "SLURM_CONF": conf}
        with suppress(BlockingIOError):  # others still use it
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            users.seek(0)
            if users.read():
                stopped = slurm_tool("down")
                assert stopped.returncode == 0, stopped.stderr
                users.truncate(0)


@pytest.fixture(autouse=True)
def in_turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests share the cluster, except those marked `alone`, which damage its daemons or nodes."""
    turn = nullcontext()
    if request.node.get_closest_marker("alone"):
        turn = alone()
    elif "slurm" in request.fixturenames:
        turn = shared()
    with turn:
        yield


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_phantom(folder / "raw", "brain-mri", 80, seed=3)
    prepare_dataset(inspect_source(folder / "raw").reader, folder / "raw", folder / "images.zarr", workers=1)
    return folder / "images.zarr"


@pytest.fixture
def launch(
    slurm: dict[str, str],
    small_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Launcher]:  # fmt: skip
    """Start small trainings on the local SLURM; they end with the test."""
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("HPC_TUMOR_ACCOUNT", raising=False)
    launcher = Launcher(tmp_path, small_images, monkeypatch)
    yield launcher
    if request.node.get_closest_marker("alone"):
        faults.repair()
    launcher.end()


@pytest.fixture(scope="session")
def quiet(slurm: dict[str, str], small_images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The undisturbed run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        launcher = Launcher(tmp_path_factory.mktemp("quiet"), small_images, monkeypatch)
        launcher.let_go()
        with shared():
            run = launcher()
            wait_for(run.is_finished, seconds=120, every=0.5)
        return run


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Facts]:
    """Return the facts of a cluster whose commands print these texts, or run scripts that begin with `case`."""

    def read(commands: dict[str, str]) -> Facts:
        tools = tmp_path / "bin"
        tools.mkdir(exist_ok=True)
        for name, text in commands.items():
            script = text if text.startswith(("case", "exit", "sleep")) else f"cat <<'END'\n{text}END"
            (tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
        return read_facts(seconds=2)

    return read
