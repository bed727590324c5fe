#!/usr/bin/env python3
"""A SLURM of four nodes with accounting and made-up GPUs on this one machine, for tests.

    tools/slurm_cluster.py up        start it, or repair it; a second `up` changes nothing
    eval "$(tools/slurm_cluster.py env)"
    srun --nodes 2 --ntasks-per-node 2 --gres gpu:2 hostname
    tools/slurm_cluster.py status
    tools/slurm_cluster.py down      stop it and remove its files

All files are in one directory (--dir), with separate sockets and ports; the only change outside is a marked line in
/etc/hosts. Needs root, and packages of Debian or Ubuntu, which `up` installs if they are missing.
An existing SLURM is never changed: `up` refuses to run beside one.
Exit codes: 0 done; 1 a daemon failed; 2 usage; 4 refused, or (status, env) not up; 130 interrupted.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from debian_packages import InstallError, install, say
from slurm_cluster_config import (
    FIRST_PORT,
    NODES,
    PACKAGES,
    PROGRAMS,
    ClusterError,
    Layout,
    find_layout,
    is_our_conf,
    new_layout,
    program,
)
from slurm_cluster_daemons import (
    is_ready,
    nodes_ready,
    read_processes,
    run,
    running_daemons,
    start_missing,
    stop_all,
    write_files,
)

DEFAULT_DIR = Path("/tmp/hpc-tumor-slurm")
HOSTS = Path("/etc/hosts")
SLURM_DAEMONS = ("slurmctld", "slurmd", "slurmdbd", "sackd")
LONGEST_DIR = 80  # a Unix socket's path ends at 107 characters


# -- may it run here? -------------------------------------------------------------------------------------------------


def require_root() -> None:
    if os.geteuid() != 0:
        packages = " ".join(PACKAGES)
        raise ClusterError(f"the local SLURM needs root (daemons, device files, packages {packages}): use sudo.")


def require_packages(may_install: bool) -> None:
    """Install SLURM, munge and MariaDB if a program is missing; refuse if that is not possible."""
    packages = " ".join(PACKAGES)
    if not (missing := _missing_programs()):
        return
    try:
        if not may_install or program("apt-get") == "apt-get":
            raise InstallError("there is no apt-get" if may_install else "--no-install was given")
        install(PACKAGES)
    except InstallError as error:
        raise ClusterError(f"{missing[0]} is not installed and {error}: install the packages {packages}.") from None
    if missing := _missing_programs():
        raise ClusterError(f"{', '.join(missing)} still missing after the packages {packages} were installed.")


def _missing_programs() -> list[str]:
    return [name for name in PROGRAMS if program(name) == name]


def refuse_foreign_slurm(root: Path, etc: Path) -> None:
    """Refuse if this machine belongs to a SLURM that this tool did not set up.

    A munged alone does not count: Debian's package starts one, and the test cluster has its own socket and key.
    """
    confs = [etc / "slurm.conf", Path("/run/slurm/conf/slurm.conf")]
    if inherited := os.environ.get("SLURM_CONF"):
        confs.append(Path(inherited))
    for conf in confs:
        if conf.exists() and not is_our_conf(conf):
            raise ClusterError(f"{conf} belongs to another SLURM, which is left alone: use a machine without one.")
    ours = set(running_daemons(Layout(root, FIRST_PORT)).values())
    for pid, _, name, argv in read_processes():
        if name.removesuffix("-wlm") in SLURM_DAEMONS and pid not in ours and not _is_of_a_test_cluster(argv):
            raise ClusterError(f"{name} (pid {pid}) of another SLURM runs here, which is left alone.")


def _is_of_a_test_cluster(argv: list[str]) -> bool:
    """Return True if a SLURM daemon with these arguments belongs to a test cluster, in any directory."""
    named = "-f" in argv[:-1]
    return is_our_conf(Path(argv[argv.index("-f") + 1]) if named else Path(argv[0]).parent / "slurm.conf")


# -- the state directory and /etc/hosts ---------------------------------------------------------------------


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Lock the directory `root`, created if missing, against other calls of this tool.

    Refuses a directory with other content, because `down` would remove it.
    """
    if len(str(root)) > LONGEST_DIR:
        raise ClusterError(f"--dir {root} is too long for sockets in it: at most {LONGEST_DIR} characters.", 2)
    while True:
        try:
            root.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise ClusterError(f"{root} cannot be used ({error.strerror}): choose another --dir.") from None
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == root.stat().st_ino:
                break
        os.close(descriptor)  # a `down` removed the directory while this call waited for it
    try:
        others = [entry.name for entry in root.iterdir() if entry.name != "slurm.conf.new"]
        if root.stat().st_uid != os.geteuid() or (others and find_layout(root) is None):
            raise ClusterError(f"{root} contains other files: choose another --dir.")
        yield
    finally:
        os.close(descriptor)


def set_hosts_line(root: Path, wanted: bool) -> None:
    """Add or remove this cluster's line in /etc/hosts, in place: in a container it cannot be replaced by renaming."""
    mark = f"# hpc-tumor test SLURM in {root}"
    text = HOSTS.read_text() if HOSTS.exists() else ""
    lines = [line for line in text.splitlines() if not line.endswith(mark)]
    if wanted:
        for node in NODES:
            with suppress(OSError):
                if (address := socket.gethostbyname(node)) != "127.0.0.1":
                    raise ClusterError(f"{node} is the name of another machine here ({address}).")
        lines.append(f"127.0.0.1 {' '.join(NODES)} {mark}")
    if lines != text.splitlines():
        HOSTS.write_text("\n".join(lines) + "\n")


def clear(root: Path) -> None:
    """Empty the state directory. Its marker file is removed last, so that a killed `down` can be repeated."""
    for entry in sorted(root.iterdir(), key=lambda entry: entry.name == "slurm.conf"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


# -- commands ---------------------------------------------------------------------------------------------------------


def up(root: Path, etc: Path, may_install: bool) -> None:
    require_root()
    refuse_foreign_slurm(root, etc)
    require_packages(may_install)
    with locked(root):
        began = time.monotonic()
        layout = find_layout(root)
        if layout and _is_current(layout) and _is_whole(layout):
            say(f"already up in {root}")
        else:
            layout = (layout and _repair(layout)) or _start_afresh(root)
            say(f"up in {root} after {time.monotonic() - began:.0f} s")
    print(f"export SLURM_CONF={layout.slurm_conf}")


def _is_whole(layout: Layout) -> bool:
    return len(running_daemons(layout)) == len(layout.daemons) and nodes_ready(layout)


def _is_current(layout: Layout) -> bool:
    """Return True if this version of the tool would write the configuration that is on disk."""
    files = ((layout.root / name, text) for name, text in layout.config_files.items())
    return all(file.exists() and file.read_text() == text for file, text in files)


def _repair(layout: Layout) -> Layout | None:
    """Restart stopped daemons, keeping jobs and accounting. Return None if that does not help."""
    saved = (layout.root / "state" / "job_state").exists() or "slurmctld" in running_daemons(layout)
    if not saved or layout.slurm_conf.read_text() != layout.config_files["slurm.conf"]:
        return None  # without its state slurmctld would reuse job numbers, which the nodes refuse
    say(f"repairing the SLURM in {layout.root} ...")
    try:
        _start(layout)
    except ClusterError as error:
        say(f"slurm_cluster: {error}")
        return None
    return layout


def _start_afresh(root: Path) -> Layout:
    """Start a new cluster after removing an earlier one. A failed start is cleaned up."""
    stop_all(Layout(root, FIRST_PORT))
    clear(root)
    say(f"starting a SLURM of {len(NODES)} nodes in {root} ...")
    try:
        layout = new_layout(root)
        _start(layout)
    except BaseException:
        _remove(root)
        raise
    return layout


def _start(layout: Layout) -> None:
    write_files(layout)
    set_hosts_line(layout.root, wanted=True)
    start_missing(layout)


def _remove(root: Path) -> None:
    stop_all(Layout(root, FIRST_PORT))  # processes are found by the directory; the port does not matter
    set_hosts_line(root, wanted=False)
    clear(root)
    root.rmdir()


def down(root: Path) -> None:
    require_root()
    was_there = root.exists()
    with locked(root):
        _remove(root)
    say(f"stopped and removed {root}" if was_there else f"nothing was up in {root}")


def status(root: Path) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `status | head` ends quietly
    layout = find_layout(root)
    if layout is None:
        raise ClusterError(f"nothing is up in {root}: `{sys.argv[0]} up` starts it.")
    alive = running_daemons(layout)
    for daemon in layout.daemons:
        pid = alive.get(daemon.name)
        print(f"{daemon.name:<14} {f'running, pid {pid}' if pid else 'not running'}")
    if not is_ready(layout, "slurmctld"):
        raise ClusterError(f"the SLURM in {root} does not answer: `{sys.argv[0]} up` repairs it.")
    for form in (("-N", "-o", "%.8N %.10P %.10T %.5c %.8m %.12G"), ("-o", "%.10P %.6a %.10l %.6D %.10p %N")):
        print("\n" + run(layout, "sinfo", *form), end="")
    if not _is_whole(layout):
        raise ClusterError(f"the SLURM in {root} is not whole: `{sys.argv[0]} up` repairs it.")


def env(root: Path) -> None:
    layout = find_layout(root)
    if layout is None or not is_ready(layout, "slurmctld"):
        raise ClusterError(f"nothing is up in {root}: `{sys.argv[0]} up` starts it.")
    print(f"export SLURM_CONF={layout.slurm_conf}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "status", "env"))
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help=f"state directory (default {DEFAULT_DIR})")
    parser.add_argument("--etc-dir", type=Path, default=Path("/etc/slurm"), help="folders of an existing SLURM")
    parser.add_argument("--no-install", action="store_true", help="do not install missing packages")
    options = parser.parse_args(argv)
    root = options.dir.absolute()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM cleans up as Ctrl-C does
    try:
        if options.command == "up":
            up(root, options.etc_dir, may_install=not options.no_install)
        else:
            {"down": down, "status": status, "env": env}[options.command](root)
    except ClusterError as error:
        say(f"slurm_cluster: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("slurm_cluster: interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
