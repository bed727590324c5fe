"""The one place that knows every file name inside a run directory, and how each is written and read.

runs/<run>/            <run> = date-time, model, short id
  config.json          every setting, resolved
  signature            hash of those settings, by which `submit` finds runs that are there already
  job.json             the scheduler's handle: cluster, job id, shape of the request
  provenance.json      versions, git commit, command line, host, GPUs, store fingerprint
  split.json           which cases trained, validated and tested
  known_cases.npz      by what a prediction knows the cases that trained and validated, and scans unlike them
  status.json          heartbeat, replaced atomically
  metrics.jsonl        one line per epoch and part
  events.jsonl         what happened to the run, in order
  checkpoints/         last.pt and the one before; best.safetensors; those kept for good; a batch that broke training;
                       last.safetensors where the weights of the best epoch were lost
  cases.csv            one row per test case or image
  figures/             pictures.npz: what a report draws of the best weights
  logs/
  profile/  tensorboard/   traces and a mirror of the metrics, where they were asked for
  result.json          written last: its absence means unfinished
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, get_args

from hpc_tumor.config import Experiment
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.system import atomic
from hpc_tumor.validation import build

Damage = Literal["damaged", "missing"]  # to the weights of a best epoch
MOST_BYTES = 64 * 2**20  # of a file that is read whole
_RUN_NAME = re.compile(r"\d{8}-\d{6}-([a-z0-9-]+)-[0-9a-f]{4,}")


class RunDir:
    """One run's directory. Reading never fails on files that are absent, half-written or foreign: it gives nothing."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.signature = self.path / "signature"
        self.job = self.path / "job.json"
        self.provenance = self.path / "provenance.json"
        self.split = self.path / "split.json"
        self.known_cases = self.path / "known_cases.npz"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.last_checkpoint = self.checkpoints / "last.pt"
        self.previous_checkpoint = self.checkpoints / "previous.pt"
        self.best_weights = self.checkpoints / "best.safetensors"
        self.last_weights = self.checkpoints / "last.safetensors"
        self.cases = self.path / "cases.csv"
        self.figures = self.path / "figures"
        self.pictures = self.figures / "pictures.npz"
        self.logs = self.path / "logs"
        self.submission = self.logs / "submission"
        self.tensorboard = self.path / "tensorboard"
        self.result = self.path / "result.json"

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def network(self) -> str:
        """The network, by the run's name; empty where that was made by others."""
        match = _RUN_NAME.fullmatch(self.name)
        return match[1] if match else ""

    @classmethod
    def create(cls, runs: Path, experiment: Experiment) -> RunDir:
        """New run directory under `runs` holding the resolved settings; it appears with them or not at all.

        Raises:
            UsageError: `runs` is not, cannot be made, or cannot be written as a folder.
            HpcTumorError: the disk is full.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{experiment.model.name}-{secrets.token_hex(3)}"
        beside = runs / f".{name}"
        with atomic.folder_to_write(runs, "a run"):
            try:
                for folder in ("checkpoints", "figures", "logs/submission"):
                    (beside / folder).mkdir(parents=True)
                cls(beside)._write_settings(experiment)
                beside.rename(runs / name)
            except BaseException:
                shutil.rmtree(beside, ignore_errors=True)
                raise
        return cls(runs / name)

    def epoch_checkpoint(self, epoch: int) -> Path:
        """The checkpoint after that epoch, where it is one of those that are kept for good."""
        return self.checkpoints / f"epoch-{epoch:04}.pt"

    def kept_checkpoints(self) -> list[Path]:
        """The checkpoints that are kept for good, in no order."""
        return matching(self.checkpoints, "epoch-*.pt")

    def broken_batch(self, epoch: int, step: int, rank: int) -> Path:
        """File in which a rank keeps its share of a batch whose loss or gradients were not finite."""
        return self.checkpoints / f"nonfinite-epoch-{epoch}-step-{step}.rank-{rank}.pt"

    def trace(self, rank: int, start: int) -> Path:
        """File in which a rank writes what its profiler saw in one start of the run."""
        return self.path / "profile" / f"rank-{rank}.{start}.trace.json.gz"

    def usage(self, rank: int, start: int) -> Path:
        """File in which a rank writes what it uses in one start of the run."""
        return self.logs / f"usage-{rank}.{start}.json"

    def failure(self, start: int) -> Path:
        """File that tells why a start of the run failed."""
        return self.logs / f"failure.{start}.json"

    def last_start(self) -> int:
        """The number of the latest start that left something in the logs, 0 where none did."""
        found = [
            path.name.split(".")[1] for kind in ("rank-*.*.out", "failure.*.json") for path in matching(self.logs, kind)
        ]
        return max((int(number) for number in found if number.isdecimal()), default=0)

    def experiment(self) -> Experiment:
        """The settings this run was made with. UsageError where there are none that can be read."""
        values = read_json(self.config)
        if values is None:
            raise UsageError(f"{self.path} is not a run directory: it holds no readable {self.config.name}.")
        return build(Experiment, values, where=str(self.config))

    def set_gpus(self, gpus: int) -> None:
        """Change the number of ranks. UsageError where the batch cannot be divided among them."""
        values = self.experiment().model_dump(mode="json")
        values["hardware"]["gpus"] = gpus
        self._write_settings(build(Experiment, values, where="--gpus"))

    def _write_settings(self, experiment: Experiment) -> None:
        atomic.write_json(self.config, experiment.model_dump(mode="json"))
        atomic.write_text(self.signature, f"{experiment.signature}\n")  # never older than the settings

    def write_status(self, **values: Any) -> None:
        """Replace the heartbeat, stamped with the time in seconds since 1970."""
        atomic.write_json(self.status, {"time": time.time(), **values})

    def add_event(self, event: str, **values: Any) -> None:
        """Append one line to what happened to this run."""
        _append_json(self.events, {"time": time.time(), "event": event, **values})

    def add_metrics(self, epoch: int, part: str, **values: Any) -> None:
        """Append the scores of one epoch on one part (train, val, test)."""
        _append_json(self.metrics, {"epoch": epoch, "part": part, **values})

    def keep_metrics(self, up_to_epoch: int) -> None:
        """Drop the lines of later epochs, which a resumed run is about to write again."""
        lines = [line for line in read_json_lines(self.metrics) if _epoch_of(line) <= up_to_epoch]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        atomic.write_text(self.metrics, text)

    def read_events(self, event: str | None = None) -> list[dict[str, Any]]:
        """All events in order, or those of one kind."""
        return [line for line in read_json_lines(self.events) if event is None or line.get("event") == event]

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics in order."""
        return read_json_lines(self.metrics)

    def remove_leftovers(self) -> None:
        """Remove what a start that was killed in the middle of a write left behind."""
        for folder in (self.path, self.checkpoints, self.figures):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    def is_finished(self) -> bool:
        """Return True where the run has written its result."""
        return read_json(self.result) is not None

    def weights_lost(
        self, result: dict[str, Any] | None = None, events: list[dict[str, Any]] | None = None
    ) -> Damage | None:
        """Damage to the weights of the best epoch where a finished run was scored without them, else None.

        `result` and `events` are what the files hold, where they have been read.
        """
        result = (read_json(self.result) or {}) if result is None else result
        lost = result.get("weights_lost")
        if "weights_lost" in result:
            return lost if lost in get_args(Damage) else None
        # Earlier versions wrote an event alone, and the last weights over the best.
        best, last = result.get("best"), result.get("last")
        if not isinstance(best, dict) or not isinstance(last, dict) or best.get("epoch") != last.get("epoch"):
            return None
        events = self.read_events() if events is None else events
        return "damaged" if any(line.get("event") == "best weights lost" for line in events) else None

    def scored_weights(self) -> Path:
        """Weights whose scores stand in the result: of the best epoch, of the last where those were lost.

        Raises DataError where they are closed to this user.
        """
        if why := why_closed(self.checkpoints):
            raise DataError(f"the weights in {self.checkpoints} cannot be read: {why}.")
        return self.last_weights if self.weights_lost() and self.last_weights.is_file() else self.best_weights


def _epoch_of(line: dict[str, Any]) -> float:
    epoch = line.get("epoch")
    return epoch if isinstance(epoch, int | float) else float("inf")  # of no run of this tool


def without_best(damage: Damage, run: str = "its") -> str:
    """Say how a run was scored whose best weights were lost; `run` is "their" of several."""
    return f"scored with the weights of {run} last epoch: those of {run} best were {damage}"


def find_runs(runs: Path, patterns: list[str] | None = None) -> list[RunDir]:
    """Run directories under `runs`, oldest first: all, or those that a pattern fits.

    A pattern is the name of a run, else a glob, else the name of a network, else a part of a name: `unet` means no
    `improved-unet` where runs of `unet` are there.

    Raises:
        UsageError: there is no such directory, or a pattern fits no run.
    """
    if not runs.is_dir():
        raise UsageError(f"there is no runs directory {runs}. Submit a run first, or name another one: --runs DIR.")
    found = [RunDir(path) for path in sorted(runs.iterdir()) if is_run(path)]
    if not patterns or patterns == ["all"]:
        return found
    chosen: dict[str, RunDir] = {}
    for pattern in patterns:
        fitting = _fitting(found, pattern)
        if not fitting:
            where = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
            raise UsageError(f"no run in {runs} fits {pattern!r}. `hpc-tumor status{where}` lists the runs.")
        chosen.update((run.name, run) for run in fitting)
    return [chosen[name] for name in sorted(chosen)]


def _fitting(runs: list[RunDir], pattern: str) -> list[RunDir]:
    ways: list[Callable[[RunDir], bool]] = [
        lambda run: run.name == pattern,
        lambda run: fnmatchcase(run.name, pattern),
        lambda run: run.network == pattern,
        lambda run: pattern in run.name,
    ]
    return next(filter(None, ([run for run in runs if fits(run)] for fits in ways)), [])


def is_run(path: Path) -> bool:
    """Return True where `path` looks like a run directory: by its name, or by the settings it holds.

    One that is closed to this user counts, so that it is named rather than passed over.
    """
    if path.name.startswith("."):
        return False
    try:
        return path.is_dir() and (_RUN_NAME.fullmatch(path.name) is not None or (path / "config.json").is_file())
    except PermissionError:
        return True


def read_signature(run: Path) -> str | None:
    """Signature of the settings in a run directory, None where they cannot be read.

    It is computed where none was kept, as by earlier versions, or where config.json was changed since.
    """
    kept = run / "signature"
    with suppress(OSError, ValueError, UnreadableFileError):
        if kept.stat().st_mtime_ns >= (run / "config.json").stat().st_mtime_ns:
            return _text(kept).strip()
    with suppress(UsageError):
        return RunDir(run).experiment().signature
    return None


class UnreadableFileError(Exception):
    """A file is there, but cannot be read. The message goes on after the file's name."""


def load(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, None where there is no such file.

    Raises:
        UnreadableFileError: no permission, a damaged disk, a pipe, too large, or not a JSON object.
    """
    try:
        value = json.loads(_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnreadableFileError(f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, RecursionError):
        raise UnreadableFileError("is damaged: not JSON") from None
    if not isinstance(value, dict):
        raise UnreadableFileError("is damaged: not a JSON object")
    return value


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, None where it is absent or cannot be read."""
    try:
        return load(path)
    except UnreadableFileError:
        return None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in `path`, one a line; lines that are none (a torn last one) are left out."""
    try:
        text = _text(path, errors="replace")
    except (OSError, UnreadableFileError):
        return []
    values = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            values.append(value)
    return values


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the paths in `folder` that fit a glob pattern, in no order; none where it is absent or closed."""
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def why_closed(folder: Path) -> str | None:
    """Return why this user cannot list `folder`, None where they can or it is absent."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except FileNotFoundError:
        return None
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def file_clock(folder: Path) -> float:
    """Return the time in seconds since 1970 by the clock that stamps new files in `folder`.

    Clocks of nodes and of this machine may differ from it, so ages of files are counted by this one. Where `folder`
    cannot be written, this machine's clock is all there is.
    """
    try:
        with TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def _text(path: Path, errors: str = "strict") -> str:
    """Text of a regular file: a pipe or a device under its name would be waited for without end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFileError("is not a regular file")
    if found.st_size > MOST_BYTES:
        raise UnreadableFileError(f"is damaged: larger than {MOST_BYTES >> 20} MB")
    return path.read_text(encoding="utf-8", errors=errors)


def _append_json(path: Path, value: dict[str, Any]) -> None:
    # One write of one whole line to a file opened for appending: lines of two writers never mix.
    line = f"{atomic.to_json(value)}\n".encode()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # a writer was killed here: its torn line stays its own
            line = b"\n" + line
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, "only part of a line could be written", str(path))
        os.fsync(handle)
    finally:
        os.close(handle)
