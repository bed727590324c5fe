"""A real SLURM for tests that ask for the fixture `slurm`: tools/slurm_cluster.py starts it on this machine."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from hpc_tumor.cluster.facts import Facts, read_facts

TOOL = Path(__file__).resolve().parents[2] / "tools" / "slurm_cluster.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


def slurm_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=400, check=False
    )


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """Environment in which SLURM's commands reach the test cluster, which is stopped at the end if it was started here.

    Where it may not be started (no root, no packages, another SLURM) the tests are skipped. Where
    HPC_TUMOR_REQUIRE_SLURM=1 they fail instead, and packages that are missing are installed.
    """
    required = os.environ.get("HPC_TUMOR_REQUIRE_SLURM") == "1"
    was_up = slurm_tool("status").returncode == 0
    started = slurm_tool("up") if required else slurm_tool("up", "--no-install")
    if started.returncode:
        message = started.stderr.strip()
        if required or started.returncode != 4:  # 4: it may not be started here
            pytest.fail(f"tools/slurm_cluster.py up ended with {started.returncode}: {message}")
        pytest.skip(f"no local SLURM ({message}); HPC_TUMOR_REQUIRE_SLURM=1 as root installs one")
    conf = started.stdout.strip().removeprefix("export SLURM_CONF=")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    with TOOL.open() as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield {**inherited, "SLURM_CONF": conf}
        if not was_up and _is_last(users):
            stopped = slurm_tool("down")
            assert stopped.returncode == 0, stopped.stderr


def _is_last(users: TextIO) -> bool:
    """Whether no other test session on this machine uses the cluster."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
