"""Folders of runs, data and home: room in bytes and files, whether nodes see them, whether writing works as it must."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.config import ClusterProfile
from hpc_tumor.console import size
from hpc_tumor.doctor.filesystems import Room, Trial, existing, room_in, try_writing
from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.errors import HpcTumorError, StoreError, UsageError
from hpc_tumor.system.resources import NO_HOME, expand_home, home_directory
from hpc_tumor.vocabulary import series

LEAST_BYTES, FEW_BYTES = 1_000_000_000, 10_000_000_000  # a run keeps up to some GB of checkpoints
LEAST_FILES, FEW_FILES = 100, 5_000  # a run is some 30 files
MOST_SKEW = 5.0  # seconds; ages of heartbeats and checkpoints would be wrong by as much
SLOW_WRITE = 2.0  # seconds for a file of a few bytes
_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def check_storage(runs: Path, store: Path | None, profile: ClusterProfile | None, tried: bool = False) -> list[Finding]:
    """The folders that a run needs. `tried`: a job on a node will tell whether it sees them."""
    on_cluster = profile is not None and profile.name != LOCAL
    findings = _room(runs, store)
    findings += check_writing(runs, try_writing(existing(runs)))
    if on_cluster and not tried:
        for name, path in (("runs", runs), ("store", store)):
            if path is not None:
                findings += _shared(name, path)
    if store is not None:
        findings += _store(store, profile)
    return findings


def check_writing(runs: Path, trial: Trial) -> list[Finding]:
    """Check whether what runs do with files works in their folder."""
    if trial.refused:
        way = "make room there, or name another folder with --runs" if trial.full else "name another folder with --runs"
        return [error(f"nothing can be written for {runs}: {trial.refused}", way)]
    ahead = "ahead of" if trial.skew > 0 else "behind"
    troubles = (
        (not trial.renames, error(
            f"a file that is replaced in {runs} is not there at once", "name a folder of another file system")),
        (trial.locks is None, warning(
            f"files cannot be locked in {runs}", "runs by SLURM go on without; those of --cluster local cannot")),
        (trial.locks is False, warning(
            f"locks do not keep others out in {runs}",
            "of two commands that start runs on this machine, let one end first; else a folder elsewhere")),
        (abs(trial.skew) > MOST_SKEW, warning(
            f"the clock of the file system is {abs(trial.skew):.0f} s {ahead} this machine's",
            "ages of heartbeats are wrong by as much; tell an administrator")),
        (trial.seconds > SLOW_WRITE, warning(
            f"writing a few bytes took {trial.seconds:.1f} s in {runs}",
            "the file system is busy or far away: take a faster one for runs, as the scratch")),
    )  # fmt: skip
    findings = [finding for is_there, finding in troubles if is_there]
    return findings or [ok("writing, syncing, replacing and locking files works for runs")]


@dataclass(frozen=True)
class _FileSystem:
    names: tuple[str, ...]
    path: Path
    room: Room


def _room(runs: Path, store: Path | None) -> list[Finding]:
    """A line for each file system: what may still be written there."""
    file_systems: list[_FileSystem] = []
    findings = []
    home = home_directory()
    if home is None:
        findings.append(warning(f"there is no home directory: {NO_HOME}", "set HOME, in jobs too"))
    for name, path in (("runs", runs), ("store", store), ("home", home)):
        if path is None:
            continue
        try:
            room = room_in(existing(path))
        except OSError as problem:
            findings.append(error(f"{name} {path}: {problem.strerror}", "name another folder, or ask an administrator"))
            continue
        same = next((each for each in file_systems if _same(each.room, room)), None)
        if same is None:
            file_systems.append(_FileSystem((name,), path, room))
        else:
            file_systems[file_systems.index(same)] = _FileSystem((*same.names, name), same.path, room)
    return [*findings, *(judge_room(each.names, each.path, each.room) for each in file_systems)]


def _same(first: Room, second: Room) -> bool:
    return (first.kind, first.mount, first.quota) == (second.kind, second.mount, second.quota)


def judge_room(names: Sequence[str], path: Path, room: Room) -> Finding:
    """Check whether there is room for what lies in a folder: the `names` of what does, `runs` among them or not."""
    left = [size(room.bytes_left)] if room.bytes_left is not None else []
    left += [_files(room.files_left)] if room.files_left is not None else []
    by = f", by {room.quota}" if room.quota else ""
    text = f"{series(names)} on {room.kind} {room.mount}: {' and '.join(left) or 'room unknown'} left{by}"
    bytes_left = FEW_BYTES if room.bytes_left is None else room.bytes_left
    files_left = FEW_FILES if room.files_left is None else room.files_left
    way = f"make room in {path}, or choose another file system" + (" with --runs" if "runs" in names else "")
    if "runs" in names and (bytes_left < LEAST_BYTES or files_left < LEAST_FILES):
        return error(text, way)
    enough = (FEW_BYTES, FEW_FILES) if "runs" in names else (LEAST_BYTES // 10, LEAST_FILES)
    if set(names) == {"store"}:  # it is only read
        return ok(text)
    return ok(text) if bytes_left >= enough[0] and files_left >= enough[1] else warning(text, way)


def _files(count: int) -> str:
    return f"{count:,} files" if count < 1_000_000 else f"{count / 1e6:.4g} million files"


def _shared(name: str, path: Path) -> list[Finding]:
    """A warning for a folder that nodes may not see."""
    try:
        room = room_in(existing(path))
    except OSError:
        return []
    real = existing(path).resolve()
    if any(real.is_relative_to(folder) for folder in _NODE_LOCAL) and not room.shared:
        text = f"{name} in {path}: on a cluster, each node has its own /{real.parts[1]}"
        return [warning(text, _elsewhere(name))]
    if room.shared:
        return []
    text = f"{name} on {room.kind} {room.mount}, this machine's own disk as it seems: nodes may not see it"
    return [warning(text, "doctor --submit asks a node; else choose a shared file system, as the scratch")]


def _elsewhere(name: str) -> str:
    return f"put {'them' if name == 'runs' else 'it'} on a shared file system, as the scratch"


def _store(path: Path, profile: ClusterProfile | None) -> list[Finding]:
    from hpc_tumor.data.store.store import Store

    try:
        store = Store.open(path)
    except StoreError as problem:
        return [error(problem.fault, problem.remedy)]
    except HpcTumorError as problem:
        return [error(str(problem).rstrip("."), "name another store with --data")]
    except OSError as problem:
        return [error(f"the store {path} cannot be read: {problem.strerror}", "look who may read it: ls -ld")]
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
            f"the store does not lie in {scratch}, the fast storage of {profile.name if profile else ''}",
            f"cp -r {path} {scratch}/, and name that with --data",
        ),
    ]
