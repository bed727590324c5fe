"""Check the folders of runs, data and home: free bytes and files, visibility on nodes, and writing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.config import ClusterProfile
from hpc_tumor.console import size
from hpc_tumor.doctor.filesystems import Room, Trial, nearest_existing, read_room, try_writing
from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.errors import HpcTumorError, StoreError, UsageError
from hpc_tumor.system.resources import NO_HOME, expand_home, home_directory
from hpc_tumor.vocabulary import series

# Error below the first limit, warning below the second. A run keeps some GB of checkpoints and about 30 files.
MIN_BYTES, FEW_BYTES = 1_000_000_000, 10_000_000_000
MIN_FILES, FEW_FILES = 100, 5_000
MAX_SKEW = 5.0  # seconds by which ages of heartbeats and checkpoints may be wrong
SLOW_WRITE = 2.0  # seconds for a file of a few bytes
_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def check_storage(runs: Path, store: Path | None, profile: ClusterProfile | None, tried: bool = False) -> list[Finding]:
    """Check the folders that a run needs; `tried`: the test job will show whether nodes see them."""
    on_cluster = profile is not None and profile.name != LOCAL
    findings = _room(runs, store)
    findings += check_writing(runs, try_writing(nearest_existing(runs)))
    if on_cluster and not tried:
        for name, path in (("runs", runs), ("store", store)):
            if path is not None:
                findings += _shared(name, path)
    if store is not None:
        findings += _store(store, profile)
    return findings


def check_writing(runs: Path, trial: Trial) -> list[Finding]:
    """Check that writing, replacing and locking files works in the runs folder."""
    if trial.refused:
        way = "choose another folder with --runs"
        return [error(f"cannot write to {runs}: {trial.refused}", f"free some space, or {way}" if trial.full else way)]
    ahead = "ahead of" if trial.skew > 0 else "behind"
    checks = (
        (not trial.renames, error(
            f"a replaced file in {runs} keeps its old contents for a time", "choose a folder on another file system")),
        (trial.locks is None, warning(
            f"the file system of {runs} does not support locks", "only runs with --cluster local need them")),
        (trial.locks is False, warning(
            f"locks are not exclusive in {runs}",
            "start runs on this machine with one command at a time, or choose another folder")),
        (abs(trial.skew) > MAX_SKEW, warning(
            f"the clock of the file system is {abs(trial.skew):.0f} s {ahead} this machine's",
            "heartbeat ages are wrong by as much; tell an administrator")),
        (trial.seconds > SLOW_WRITE, warning(
            f"writing a few bytes took {trial.seconds:.1f} s in {runs}",
            "the file system is slow or busy: choose a faster one for runs, such as scratch")),
    )  # fmt: skip
    findings = [finding for failed, finding in checks if failed]
    return findings or [ok("writing, syncing, replacing and locking files works for runs")]


def _room(runs: Path, store: Path | None) -> list[Finding]:
    """Report the free space of each file system."""
    file_systems: dict[tuple[str, Path, str], tuple[tuple[str, ...], Path, Room]] = {}
    findings = []
    home = home_directory()
    if home is None:
        findings.append(warning(f"no home directory: {NO_HOME}", "set HOME, in jobs too"))
    for name, path in (("runs", runs), ("store", store), ("home", home)):
        if path is None:
            continue
        try:
            room = read_room(nearest_existing(path))
        except OSError as problem:
            way = "choose another folder, or ask an administrator"
            findings.append(error(f"{name} {path}: {problem.strerror}", way))
            continue
        key = (room.kind, room.mount, room.quota)
        names, first, _ = file_systems.get(key, ((), path, room))
        file_systems[key] = ((*names, name), first, room)
    return [*findings, *(judge_room(*file_system) for file_system in file_systems.values())]


def judge_room(names: Sequence[str], path: Path, room: Room) -> Finding:
    """Check the free space of a file system; `names` are what it holds, such as `runs`."""
    left = [size(room.bytes_left)] if room.bytes_left is not None else []
    left += [_files(room.files_left)] if room.files_left is not None else []
    by = f", by {room.quota}" if room.quota else ""
    text = f"{series(names)} on {room.kind} {room.mount}: {' and '.join(left) or 'unknown space'} left{by}"
    bytes_left = FEW_BYTES if room.bytes_left is None else room.bytes_left
    files_left = FEW_FILES if room.files_left is None else room.files_left
    way = f"free some space in {path}, or choose another file system" + (" with --runs" if "runs" in names else "")
    if "runs" in names and (bytes_left < MIN_BYTES or files_left < MIN_FILES):
        return error(text, way)
    enough = (FEW_BYTES, FEW_FILES) if "runs" in names else (MIN_BYTES // 10, MIN_FILES)
    if set(names) == {"store"}:  # only read
        return ok(text)
    return ok(text) if bytes_left >= enough[0] and files_left >= enough[1] else warning(text, way)


def _files(count: int) -> str:
    return f"{count:,} files" if count < 1_000_000 else f"{count / 1e6:.4g} million files"


def _shared(name: str, path: Path) -> list[Finding]:
    """Warn about a folder that nodes may not see."""
    try:
        room = read_room(nearest_existing(path))
    except OSError:
        return []
    real = nearest_existing(path).resolve()
    if any(real.is_relative_to(folder) for folder in _NODE_LOCAL) and not room.shared:
        text = f"{name} in {path}: on a cluster, each node has its own /{real.parts[1]}"
        return [warning(text, f"move {'them' if name == 'runs' else 'it'} to a shared file system, such as scratch")]
    if room.shared:
        return []
    text = f"{name} on {room.kind} {room.mount}, probably this machine's local disk: nodes may not see it"
    return [warning(text, "check with doctor --submit, or choose a shared file system, such as scratch")]


def _store(path: Path, profile: ClusterProfile | None) -> list[Finding]:
    from hpc_tumor.data.store.store import Store

    try:
        store = Store.open(path)
    except StoreError as problem:
        return [error(problem.fault, problem.remedy)]
    except HpcTumorError as problem:
        return [error(str(problem).rstrip("."), "choose another store with --data")]
    except OSError as problem:
        return [error(f"cannot read the store {path}: {problem.strerror}", "check its permissions with ls -ld")]
    unit = "images" if store.task == "classification" else "cases"
    about = f"store {path.name}: {store.dataset}, {len(store):,} {unit}, fingerprint {store.fingerprint[:12]}"
    scratch = os.path.expandvars(profile.environment.scratch or "") if profile else ""
    if not scratch or "$" in scratch:
        return [ok(about)]
    try:
        fast = expand_home(Path(scratch)).resolve()
    except UsageError:
        return [ok(about)]
    if path.resolve().is_relative_to(fast):
        return [ok(f"{about}, on the fast storage {scratch}")]
    return [
        ok(about),
        warning(
            f"the store is not in {scratch}, the fast storage of {profile.name if profile else ''}",
            f"cp -r {path} {scratch}/, and use the copy with --data",
        ),
    ]
