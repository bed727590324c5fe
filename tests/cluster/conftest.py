"""A real SLURM for tests that ask for the fixture `slurm`: tools/slurm_cluster.py starts it on this machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from local_slurm import alone, lock_file, shared, slurm_tool

from hpc_tumor.cluster.facts import Facts, read_facts


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Environment in which SLURM's commands reach the test cluster. The last session that uses it stops it again,
    if a test has started it.

    Where it may not be started (no root, no packages, another SLURM) the tests are skipped. Where
    HPC_TUMOR_REQUIRE_SLURM=1 they fail instead, and packages that are missing are installed.
    """
    required = os.environ.get("HPC_TUMOR_REQUIRE_SLURM") == "1"
    with lock_file("users").open("a+") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with shared():
            was_up = slurm_tool("status").returncode == 0
            started = slurm_tool("up") if required else slurm_tool("up", "--no-install")
        if started.returncode:
            message = started.stderr.strip()
            if required or started.returncode != 4:  # 4: it may not be started here
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
    """Tests use the cluster side by side, but for those marked `alone`, which hurt its daemons or nodes."""
    turn = nullcontext()
    if request.node.get_closest_marker("alone"):
        turn = alone()
    elif "slurm" in request.fixturenames:
        turn = shared()
    with turn:
        yield


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Facts]:
    """The facts of a cluster whose commands say this: a text, or a script after `case`."""

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
