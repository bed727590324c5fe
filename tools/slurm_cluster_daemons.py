"""Start, watch and stop the daemons of the local test SLURM."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from slurm_cluster_config import ACCOUNT, CLUSTER, NODES, ClusterError, Daemon, Layout, program

START_SECONDS = 60.0


def read_processes() -> Iterator[tuple[int, int, str, list[str]]]:
    """Return (pid, parent, name, argv) of every live process, zombies excluded."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError, ValueError):
            start, _, end = entry.joinpath("stat").read_text(errors="replace").rpartition(")")
            state, parent = end.split()[:2]
            if state not in "ZX":
                argv = entry.joinpath("cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
                yield int(entry.name), int(parent), start.partition("(")[2], argv


def running_daemons(layout: Layout) -> dict[str, int]:
    """Return the pids of the cluster's running daemons by name; program and state directory identify them."""
    found = {}
    for pid, _, _, argv in read_processes():
        words = [part for word in argv for part in (word, word.partition("=")[2])]
        if any(word.startswith(f"{layout.root}/") for word in words):
            name = Path(argv[0]).name
            found[f"{name}-{argv[-1]}" if "-N" in argv else name] = pid
    return {daemon.name: found[daemon.name] for daemon in layout.daemons if daemon.name in found}


def run(layout: Layout, *command: str, check: bool = True) -> str:
    """Return the output of a command on the cluster; an empty string if it failed and `check` is off."""
    try:
        done = subprocess.run(
            command, env=layout.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    else:
        if done.returncode == 0:
            return done.stdout
        failure = (done.stderr or done.stdout).strip()
    if check:
        raise ClusterError(f"{Path(command[0]).name} failed: {failure}", 1)
    return ""


def write_files(layout: Layout) -> None:
    """Write configuration, key, database and device files. slurm.conf, the first, marks the directory as ours."""
    for name, text in layout.config_files.items():
        draft = layout.root / f"{name}.new"
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.chmod(0o600 if name == "slurmdbd.conf" else 0o644)  # required by slurmdbd
        draft.replace(layout.root / name)
    for folder in layout.folders:
        folder.mkdir(mode=0o755, exist_ok=True)
    for minor, device in enumerate(layout.devices):
        if not device.exists():
            try:
                os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(195, minor))
            except PermissionError:
                raise ClusterError("device files cannot be made (mknod): this container lacks CAP_MKNOD.") from None
    if not layout.munge_key.exists():
        run(layout, program("mungekey"), "--create", f"--keyfile={layout.munge_key}")
    if not layout.database.exists():
        draft = layout.root / "mysql.new"
        shutil.rmtree(draft, ignore_errors=True)
        run(
            layout, program("mariadb-install-db"), "--no-defaults", "--user=root", f"--datadir={draft}",
            "--auth-root-authentication-method=socket", "--skip-test-db",
            f"--tmpdir={layout.root}/tmp",  # in a shared one, another server at its start removes this one's tables
        )  # fmt: skip
        draft.rename(layout.database)


def is_ready(layout: Layout, name: str) -> bool:
    """Return True if a daemon answers requests."""
    if name == "munged":
        return bool(run(layout, "munge", f"--socket={layout.munge_socket}", "--no-input", check=False))
    if name == "mariadbd":
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(layout.database_socket))
            return True
        return False
    if name == "slurmdbd":
        return "billing" in run(layout, "sacctmgr", "-nP", "show", "tres", "format=type", check=False)
    if name == "slurmctld":
        return " UP" in run(layout, "scontrol", "ping", check=False)
    return True  # the nodes are waited for together


def node_states(layout: Layout) -> dict[str, str]:
    """Return the state of each node in SLURM's words: `idle`, `mixed`, `down*` (the star: it does not answer)."""
    lines = run(layout, "sinfo", "-h", "-N", "-p", "GPU", "-o", "%N %T", check=False).splitlines()
    return dict(line.split() for line in lines)


def nodes_ready(layout: Layout) -> bool:
    states = node_states(layout)
    usable = ("idle", "mixed", "allocated", "completing", "planned")
    return all(states.get(node) in usable for node in NODES)


def wait_for(condition: Callable[[], bool], seconds: float, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait until `condition` holds and return True; False after `seconds`, or when `process` has ended."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or (process is not None and process.poll() is not None):
            return False
        time.sleep(0.1)
    return True


def start_missing(layout: Layout) -> None:
    """Start the daemons that are not running, in order, and wait for the nodes."""
    alive = running_daemons(layout)
    for daemon in layout.daemons:
        if daemon.name not in alive:
            _start(layout, daemon)
        if daemon.name == "slurmdbd":
            _add_account(layout)
    for node, state in node_states(layout).items():
        if state.startswith("drain"):  # only an administrator can bring it back
            run(layout, "scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
    if not wait_for(lambda: nodes_ready(layout), START_SECONDS):
        logs = "\n".join(_log_tail(layout, daemon) for daemon in layout.daemons if "slurm" in daemon.name)
        raise ClusterError(f"the nodes do not come up: {node_states(layout)}. The logs end:\n{logs}", 1)


def _start(layout: Layout, daemon: Daemon) -> None:
    """Start one daemon, detached from the caller's terminal, session and open files, and wait until it answers."""
    with (layout.logs / daemon.log).open("ab") as log:
        process = subprocess.Popen(
            daemon.argv, executable=program(daemon.program), env=layout.environment, cwd=layout.root,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True, umask=0o022,
        )  # fmt: skip
    if not wait_for(lambda: is_ready(layout, daemon.name), START_SECONDS, process):
        ended = process.poll()
        how = "does not answer" if ended is None else f"ended with exit code {ended}"
        raise ClusterError(f"{daemon.name} {how}. Its log ends:\n{_log_tail(layout, daemon)}", 1)


def _log_tail(layout: Layout, daemon: Daemon, lines: int = 12) -> str:
    log = layout.logs / daemon.log
    tail = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []
    return "\n".join(f"  {daemon.name}: {line}" for line in tail)


def _add_account(layout: Layout) -> None:
    """Add the account that jobs are charged to, for root and the user who called sudo. slurmctld needs it."""

    def charged() -> list[str]:
        return run(layout, "sacctmgr", "-nP", "show", "assoc", f"account={ACCOUNT}", "format=user").split()

    users = {"root", os.environ.get("SUDO_USER", "root")}
    if users <= set(charged()):
        return
    for words in (
        ("cluster", CLUSTER),
        ("account", ACCOUNT, f"cluster={CLUSTER}", "Description=tests", "Organization=tests"),
        *(("user", user, f"account={ACCOUNT}", f"DefaultAccount={ACCOUNT}") for user in sorted(users)),
    ):
        run(layout, "sacctmgr", "-i", "add", *words, check=False)  # fails if it exists already
    if not users <= set(charged()):
        raise ClusterError(f"sacctmgr did not add the account {ACCOUNT} for {', '.join(sorted(users))}.", 1)


def stop_all(layout: Layout) -> None:
    """End the cluster's daemons and jobs: SIGTERM, then SIGKILL."""
    seen: set[int] = set()

    def alive() -> set[int]:
        return seen & {pid for pid, *_ in read_processes()}

    for number, seconds in ((signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0)):
        seen.update(_our_processes(layout))
        for pid in alive():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if wait_for(lambda: not alive(), seconds):
            break
    if left := _our_processes(layout):
        raise ClusterError(f"processes {sorted(left)} do not end.", 1)


def _our_processes(layout: Layout) -> set[int]:
    """Return the daemons, the slurmstepds and their descendants: the processes of jobs."""
    processes = list(read_processes())
    found = set(running_daemons(layout).values())
    # A slurmstepd renames itself; it keeps the working directory in which its slurmd was started.
    found |= {pid for pid, _, name, _ in processes if name.startswith("slurmstepd") and _works_in(pid, layout.root)}
    while below := {pid for pid, parent, _, _ in processes if parent in found} - found:
        found |= below
    return found


def _works_in(pid: int, root: Path) -> bool:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/cwd").readlink()).removesuffix(" (deleted)") == str(root)
    return False
