"""Find and remove files that are no longer needed: in a runs folder, beside its stores and on this machine's disk.

A run keeps all its files while it may still change, and always those that its scores come from. Of an unfinished run,
only temporary files of dead writers are removed: `resume` needs the rest. Files of other users, files behind links and
everything an unreadable run may need are kept.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hpc_tumor.cluster import slurm
from hpc_tumor.cluster.describe.profiles import list_profiles
from hpc_tumor.cluster.launch.private import code_folder, submission_lock, submissions_folder
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.data.convert.target import list_staging, remove_staging
from hpc_tumor.data.feed.node_disk import list_copies, remove_copy
from hpc_tumor.errors import DataError
from hpc_tumor.records import section
from hpc_tumor.run_dir import RunDir, file_clock, find_runs, read_json

Kind = Literal["checkpoints", "temporary", "pickles", "code", "staging", "copies"]
KINDS: tuple[Kind, ...] = get_args(Kind)
QUIET_SECONDS = 600.0  # without a change, after which a temporary file of an unfinished run has no writer
_SETTLED_SECONDS = 3600.0  # within which a batch script ends after the result, if SLURM does not answer
_CLOCKS_DIFFER = 86_400.0  # allowed difference between machines' clocks when removing code


@dataclass(frozen=True)
class Leftover:
    """A file or folder that may be removed, its size, and its run."""

    kind: Kind
    path: Path
    files: int
    bytes: int
    run: str | None = None


@dataclass(frozen=True)
class RunSize:
    """Files and bytes of a run, the removable (or removed) bytes, and its state or another reason to leave it alone."""

    run: str
    state: State
    files: int
    bytes: int
    may_go: int = 0
    left_alone: State | str | None = None


@dataclass
class Cleaning:
    """Files that may be removed or were (`removed`), run sizes, largest first, and failed paths with the reason."""

    leftovers: list[Leftover] = field(default_factory=list)
    sizes: list[RunSize] = field(default_factory=list)
    removed: bool = False
    failed: dict[Path, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        kinds = {
            kind: {name: sum(getattr(item, name) for item in self.of(kind)) for name in ("files", "bytes")}
            for kind in KINDS
        }
        return {
            "removed": self.removed,
            "kinds": kinds,
            "leftovers": [asdict(item) for item in self.leftovers],
            "runs": [asdict(size) for size in self.sizes],
            "failed": {str(path): reason for path, reason in self.failed.items()},
        }

    def of(self, kind: Kind) -> list[Leftover]:
        """Return the leftovers of one kind."""
        return [item for item in self.leftovers if item.kind == kind]


def clean(runs: Path, chosen: Sequence[RunDir] | None = None, *, delete: bool = False) -> Cleaning:
    """Find unneeded files below `runs`, and remove them if `delete` is true.

    Args:
        chosen: the runs to examine; None: all, and what runs share: code, staging folders of stores, copies.

    Raises:
        UsageError: the folder does not exist or is not writable.
    """
    cleaning = _find(runs, chosen)
    cleaning.removed = delete
    if not delete or not cleaning.leftovers:
        return cleaning
    with submission_lock(runs) as alone:  # no submission may start to use what is removed
        cleaning = _find(runs, chosen)
        cleaning.removed = True
        if not alone:
            code = [item.path for item in cleaning.leftovers if item.kind == "code"]
            cleaning.failed |= dict.fromkeys(code, "the file system has no locks: another command may start to use it")
        cleaning.leftovers = [
            item for item in cleaning.leftovers if item.path not in cleaning.failed and _remove(item, cleaning.failed)
        ]
    cleaning.sizes = [_after(size, runs, cleaning.leftovers) for size in cleaning.sizes]
    return cleaning


def _find(runs: Path, chosen: Sequence[RunDir] | None) -> Cleaning:
    everything = find_runs(runs)
    chosen_names = {run.path.name for run in (everything if chosen is None else chosen)}
    states = read_states(everything)
    clock = file_clock(runs)
    settled = _settled(states, clock)
    cleaning = Cleaning()
    for state in states:
        if state.name not in chosen_names:
            continue
        why = _why_left_alone(state, settled)
        own = [] if why else list(_of_run(state, clock))
        cleaning.leftovers += own
        files, size = _measure(state.run.path)
        cleaning.sizes.append(RunSize(state.name, state.state, files, size, sum(item.bytes for item in own), why))
    cleaning.sizes.sort(key=lambda size: (-size.bytes, size.run))
    if chosen is None:
        cleaning.leftovers += [*_half_made(runs, clock), *_code(runs, states, settled), *_shared(states)]
    return cleaning


def _after(before: RunSize, runs: Path, gone: Sequence[Leftover]) -> RunSize:
    """Return the size of a run after the removal of `gone`."""
    of_run = [item for item in gone if item.run == before.run]
    if not of_run:
        return replace(before, may_go=0)
    files, size = _measure(runs / before.run)
    return replace(before, files=files, bytes=size, may_go=sum(item.bytes for item in of_run))


def _settled(states: Sequence[RunState], clock: float) -> set[str]:
    """Return the names of finished runs whose jobs have ended: a batch script outlives its ranks."""
    finished = [state for state in states if state.state is State.FINISHED]
    jobs = {state.name: JobRecord.of_run(state.run) for state in finished}
    young = {name for name, job in jobs.items() if not job.is_local}
    # Also earlier jobs: one that others share may go on, and needs its pickle to start again.
    ids = {name: [job_id for job_id in (*job.earlier, *job.job_ids) if job_id] for name, job in jobs.items()}
    queue = slurm.read_queue(job_id for name in young for job_id in ids[name])
    settled = set()
    for state in finished:
        job = jobs[state.name]
        if job.is_local:
            active = state.alive
        elif queue is None:
            active = bool(job.job_ids) and clock - state.run.result.stat().st_mtime < _SETTLED_SECONDS
        else:
            names = (job.job_name or state.name, state.name)
            records = [queue[job_id] for job_id in ids[state.name] if job_id in queue]
            ours = [record for record in records if record.name in names or record.name.startswith("hpc-tumor-")]
            active = any(map(slurm.is_alive, ours))
        if not active:
            settled.add(state.name)
    return settled


def _why_left_alone(state: RunState, settled: set[str]) -> State | str | None:
    """Return the state, or another reason, for which a run must not be touched; None if it may be cleaned."""
    path = state.run.path
    if path.is_symlink():
        return "a link"
    if not _is_own(path):
        return "another user's"
    if state.state is State.FINISHED:
        return None if state.name in settled else "its job is still ending"
    return state.state if state.state.open or state.state is State.UNREADABLE or state.alive else None


def _of_run(state: RunState, clock: float) -> Iterator[Leftover]:
    """Yield the files that an ended run of this user does not need."""
    run = state.run
    finished = state.state is State.FINISHED
    for folder in (run.path, run.checkpoints, run.figures):
        for path in _inside(folder, ".*.tmp"):
            if finished or clock - path.lstat().st_mtime > QUIET_SECONDS:  # SLURM may have restarted the run
                yield _leftover("temporary", path, run.name)
    if not finished:
        return
    # If the best weights are lost, the run may be scored again from its checkpoint once they are back.
    if run.weights_lost() is None and _is_own_file(run.best_weights):
        for path in (run.last_checkpoint, run.previous_checkpoint):
            if _is_own_file(path) and not run.checkpoints.is_symlink():
                yield _leftover("checkpoints", path, run.name)
    job = JobRecord.of_run(run)
    for path in _inside(run.submission, "*.pkl"):
        yield _leftover("pickles", path, run.name)
    above = submissions_folder(run.path.parent)
    for job_id, name in zip((*job.earlier, job.job_id), job.log_folders, strict=False):
        if job_id and name and (run.path.parent / name).parent == above and not above.is_symlink():
            for path in _inside(run.path.parent / name, f"{job_id}_*.pkl"):
                yield _leftover("pickles", path, run.name)


def _half_made(runs: Path, clock: float) -> Iterator[Leftover]:
    """Yield run directories, and files beside them, that a killed command left incomplete."""
    for path in [*_inside(runs.resolve(), ".*.tmp"), *_inside(code_folder(runs), ".*.tmp")]:
        if clock - path.lstat().st_mtime > QUIET_SECONDS:
            yield _leftover("temporary", path)
    for path in sorted(runs.glob(".[0-9]*")):
        is_half_made = RunDir(path.with_name(path.name[1:])).network and path.is_dir() and not path.is_symlink()
        if is_half_made and _is_own(path) and clock - path.stat().st_mtime > QUIET_SECONDS:
            yield _leftover("temporary", path)


def _code(runs: Path, states: Sequence[RunState], settled: set[str]) -> Iterator[Leftover]:
    """Yield code archives that no run of this user needs.

    Archives of unfinished runs are kept, and all since the submission of the oldest run that may still start.
    """
    needed: set[str] = set()
    since = float("inf")
    for state in states:
        if state.state is State.FINISHED and state.name in settled:
            continue
        needed.add(str(section(read_json(state.run.provenance)).get("code")))
        if _is_own(state.run.path) and _why_left_alone(state, settled):
            submitted = JobRecord.of_run(state.run).submitted
            since = min(since, 0.0 if submitted is None else submitted - _CLOCKS_DIFFER)
    for path in _inside(code_folder(runs), "*.zip"):
        if path.name not in needed and path.lstat().st_mtime < since:
            yield _leftover("code", path)


def _shared(states: Sequence[RunState]) -> Iterator[Leftover]:
    """Yield staging folders of the runs' stores, and copies of stores on this machine's disks."""
    stores: set[str] = set()
    disks = {profile.environment.node_disk for profile in list_profiles()[0]}
    for state in states:
        if not _is_own(state.run.path):  # another user's run may name any folder
            continue
        stores.add(str(section(section(read_json(state.run.config)).get("data")).get("store") or ""))
        if profile := JobRecord.of_run(state.run).profile:
            disks.add(profile.environment.node_disk)
    for store in sorted(stores - {""}):
        yield from (_leftover("staging", path) for path in list_staging(Path(store)) if _is_own(path))
    for disk in sorted(filter(None, disks)):
        yield from (_leftover("copies", path) for path in list_copies(disk))


def _remove(item: Leftover, failed: dict[Path, str]) -> bool:
    """Remove `item` unless it is in use again; return whether it is gone, and add the reason to `failed` if not."""
    try:
        if item.kind == "staging":
            remove_staging(item.path)
        elif item.kind == "copies":
            if not remove_copy(item.path):
                failed[item.path] = "in use again"
        elif item.path.is_dir() and not item.path.is_symlink():
            shutil.rmtree(item.path)
        else:
            item.path.unlink()
    except FileNotFoundError:
        return True
    except OSError as error:
        failed[item.path] = error.strerror or str(error)
    except DataError as error:
        failed[item.path] = str(error)
    return item.path not in failed


def _leftover(kind: Kind, path: Path, run: str | None = None) -> Leftover:
    status = path.lstat()
    files, size = _measure(path)
    linked = not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1  # a kept checkpoint shares the bytes
    return Leftover(kind, path, files, 0 if linked else size, run)


def _measure(path: Path) -> tuple[int, int]:
    """Return the files and bytes of a file or folder; hard links count once."""
    seen: set[tuple[int, int]] = set()
    files = size = 0
    for status in _statuses(path):
        if not stat.S_ISDIR(status.st_mode):
            files += 1
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size += status.st_size
    return files, size


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a file, or of all readable files below a folder, without following links."""
    with suppress(OSError):
        own = path.lstat()
        yield own
        if stat.S_ISDIR(own.st_mode):
            for entry in path.iterdir():
                yield from _statuses(entry)


def _inside(folder: Path, pattern: str) -> list[Path]:
    """Return this user's files in `folder` that match `pattern`; none if the folder is a link."""
    if folder.is_symlink():
        return []
    return sorted(path for path in folder.glob(pattern) if _is_own_file(path))


def _is_own(path: Path) -> bool:
    with suppress(OSError):
        return path.lstat().st_uid == os.getuid()
    return False


def _is_own_file(path: Path) -> bool:
    with suppress(OSError):
        status = path.lstat()
        return status.st_uid == os.getuid() and stat.S_ISREG(status.st_mode)
    return False
