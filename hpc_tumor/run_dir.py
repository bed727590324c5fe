"""Layout of a run directory: every file name, and how the files are written and read.

runs/<run>/            <run> = date-time, network, short id
  config.json          all settings, resolved
  signature            hash of those settings, by which `submit` finds existing runs
  job.json             the scheduler's job: cluster, job id, request
  provenance.json      versions, git commit, command line, host, GPUs, store fingerprint
  split.json           training, validation and test cases
  known_cases.npz      features by which predict recognises training and validation cases, and scans unlike them
  status.json          heartbeat, replaced atomically
  metrics.jsonl        one line per epoch and split part
  events.jsonl         events of the run in order
  checkpoints/         last.pt, previous.pt, best.safetensors, permanent checkpoints, a non-finite batch;
                       last.safetensors if the weights of the best epoch were lost
  cases.csv            one row per test case or image
  figures/             pictures.npz: data of the report's pictures, from the best weights
  logs/
  profile/  tensorboard/   traces and TensorBoard files, if requested
  result.json          written last: a run without it is unfinished
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
from hpc_tumor.earlier import with_earlier_defaults
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.system import atomic
from hpc_tumor.validation import build
from hpc_tumor.vocabulary import RunStatus

Damage = Literal["damaged", "missing"]  # of the weights of the best epoch
MOST_BYTES = 64 * 2**20  # of a file that is read into memory
_RUN_NAME = re.compile(r"\d{8}-\d{6}-([a-z0-9-]+)-[0-9a-f]{4,}")


class RunDir:
    """The directory of one run. Missing, incomplete and foreign files are read as empty."""

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
        """The network, from the run's name; empty for a foreign name."""
        match = _RUN_NAME.fullmatch(self.name)
        return match[1] if match else ""

    @classmethod
    def create(cls, runs: Path, experiment: Experiment) -> RunDir:
        """Create a run directory with the resolved settings under `runs`, atomically.

        Raises:
            UsageError: `runs` is not a folder, or cannot be created or written.
            HpcTumorError: the disk is full.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{experiment.model.name}-{secrets.token_hex(3)}"
        temporary = runs / f".{name}"
        with atomic.folder_to_write(runs, "a run"):
            try:
                for folder in ("checkpoints", "figures", "logs/submission"):
                    (temporary / folder).mkdir(parents=True)
                cls(temporary)._write_settings(experiment)
                temporary.rename(runs / name)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return cls(runs / name)

    def epoch_checkpoint(self, epoch: int) -> Path:
        """Return the path of the permanent checkpoint after `epoch`."""
        return self.checkpoints / f"epoch-{epoch:04}.pt"

    def kept_checkpoints(self) -> list[Path]:
        """Return the permanent checkpoints, in no order."""
        return matching(self.checkpoints, "epoch-*.pt")

    def broken_batch(self, epoch: int, step: int, rank: int) -> Path:
        """Return the path of a rank's share of a batch with non-finite loss or gradients."""
        return self.checkpoints / f"nonfinite-epoch-{epoch}-step-{step}.rank-{rank}.pt"

    def trace(self, rank: int, start: int) -> Path:
        """Return the path of a rank's profiler trace in one start."""
        return self.path / "profile" / f"rank-{rank}.{start}.trace.json.gz"

    def usage(self, rank: int, start: int) -> Path:
        """Return the path of a rank's resource usage in one start."""
        return self.logs / f"usage-{rank}.{start}.json"

    def failure(self, start: int) -> Path:
        """Return the path of the failure record of one start."""
        return self.logs / f"failure.{start}.json"

    def last_start(self) -> int:
        """Return the number of the latest start in the logs, 0 if there is none."""
        paths = [path for pattern in ("rank-*.*.out", "failure.*.json") for path in matching(self.logs, pattern)]
        numbers = [path.name.split(".")[1] for path in paths]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def experiment(self) -> Experiment:
        """Return the settings of this run. Raises UsageError if config.json is missing or invalid."""
        values = read_json(self.config)
        if values is None:
            raise UsageError(f"{self.path} is not a run directory: it has no readable {self.config.name}.")
        return build(Experiment, with_earlier_defaults(values), where=str(self.config))

    def set_gpus(self, gpus: int) -> None:
        """Change the number of ranks. Raises UsageError if it exceeds the batch size."""
        values = self.experiment().model_dump(mode="json")
        values["hardware"]["gpus"] = gpus
        self._write_settings(build(Experiment, values, where="--gpus"))

    def _write_settings(self, experiment: Experiment) -> None:
        atomic.write_json(self.config, experiment.model_dump(mode="json"))
        atomic.write_text(self.signature, f"{experiment.signature}\n")  # after the settings, so that it is not older

    def write_status(self, state: RunStatus, **values: Any) -> None:
        """Replace the heartbeat, with the time in seconds since 1970."""
        atomic.write_json(self.status, {"time": time.time(), "state": state, **values})

    def add_event(self, event: str, **values: Any) -> None:
        """Append an event."""
        _append_json(self.events, {"time": time.time(), "event": event, **values})

    def add_metrics(self, epoch: int, part: str, **values: Any) -> None:
        """Append the scores of one epoch on one split part (train, val, test)."""
        _append_json(self.metrics, {"epoch": epoch, "part": part, **values})

    def keep_metrics(self, up_to_epoch: int) -> None:
        """Drop the lines of later epochs, which a resumed run will write again."""
        lines = [line for line in read_json_lines(self.metrics) if _epoch_of(line) <= up_to_epoch]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        atomic.write_text(self.metrics, text)

    def read_events(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return all events in order, or those of one kind."""
        return [line for line in read_json_lines(self.events) if event is None or line.get("event") == event]

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all lines of metrics in order."""
        return read_json_lines(self.metrics)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a killed start."""
        for folder in (self.path, self.checkpoints, self.figures):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    def is_finished(self) -> bool:
        """Return True if the run has written its result."""
        return read_json(self.result) is not None

    def weights_lost(
        self, result: dict[str, Any] | None = None, events: list[dict[str, Any]] | None = None
    ) -> Damage | None:
        """Return the damage if a finished run was scored without the weights of its best epoch, else None.

        `result` and `events` are the contents of the files if already read.
        """
        result = (read_json(self.result) or {}) if result is None else result
        lost = result.get("weights_lost")
        if "weights_lost" in result:
            return lost if lost in get_args(Damage) else None
        # Earlier versions only wrote an event, and replaced the best weights by the last.
        best, last = result.get("best"), result.get("last")
        if not isinstance(best, dict) or not isinstance(last, dict) or best.get("epoch") != last.get("epoch"):
            return None
        events = self.read_events() if events is None else events
        return "damaged" if any(line.get("event") == "best weights lost" for line in events) else None

    def scored_weights(self) -> Path:
        """Return the weights that the result was scored with: of the best epoch, or of the last if those were lost.

        Raises DataError without permission to read them.
        """
        if why := why_closed(self.checkpoints):
            raise DataError(f"the weights in {self.checkpoints} cannot be read: {why}.")
        return self.last_weights if self.weights_lost() and self.last_weights.is_file() else self.best_weights


def _epoch_of(line: dict[str, Any]) -> float:
    epoch = line.get("epoch")
    return epoch if isinstance(epoch, int | float) else float("inf")  # a foreign line


def describe_lost_weights(damage: Damage, pronoun: str = "its") -> str:
    """Describe how a run with lost best weights was scored; the pronoun is "their" for several runs."""
    return f"scored with the weights of {pronoun} last epoch: those of {pronoun} best epoch were {damage}"


def find_runs(runs: Path, patterns: list[str] | None = None) -> list[RunDir]:
    """Return the run directories under `runs`, oldest first: all, or those that match a pattern.

    A pattern is tried as a run name, then a glob, then a network, then a part of a name: `unet` does not match runs of
    `improved-unet` if there are runs of `unet`.

    Raises:
        UsageError: the runs folder does not exist, or a pattern matches no run.
    """
    if not runs.is_dir():
        raise UsageError(f"no runs folder at {runs}. Submit a run first, or choose another with --runs.")
    existing = [RunDir(path) for path in sorted(runs.iterdir()) if is_run(path)]
    if not patterns or patterns == ["all"]:
        return existing
    chosen: dict[str, RunDir] = {}
    for pattern in patterns:
        matches = _match(existing, pattern)
        if not matches:
            option = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
            raise UsageError(f"no run in {runs} matches {pattern!r}. `hpc-tumor status{option}` lists the runs.")
        chosen.update((run.name, run) for run in matches)
    return [chosen[name] for name in sorted(chosen)]


def _match(runs: list[RunDir], pattern: str) -> list[RunDir]:
    ways: list[Callable[[RunDir], bool]] = [
        lambda run: run.name == pattern,
        lambda run: fnmatchcase(run.name, pattern),
        lambda run: run.network == pattern,
        lambda run: pattern in run.name,
    ]
    return next(filter(None, ([run for run in runs if fits(run)] for fits in ways)), [])


def is_run(path: Path) -> bool:
    """Return True if `path` looks like a run directory by its name or config.json.

    One without permission counts too, so that it is reported rather than skipped.
    """
    if path.name.startswith("."):
        return False
    try:
        return path.is_dir() and (_RUN_NAME.fullmatch(path.name) is not None or (path / "config.json").is_file())
    except PermissionError:
        return True


def read_signature(run: Path) -> str | None:
    """Return the signature of a run's settings, None if they cannot be read.

    It is computed if config.json is newer than the signature file or that is missing, as in earlier versions.
    """
    file = run / "signature"
    with suppress(OSError, ValueError, UnreadableFileError):
        if file.stat().st_mtime_ns >= (run / "config.json").stat().st_mtime_ns:
            return _text(file).strip()
    with suppress(UsageError):
        return RunDir(run).experiment().signature
    return None


class UnreadableFileError(Exception):
    """An existing file cannot be read. The message continues the file's name."""


def load(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`, None if the file does not exist.

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
    """Return the JSON object in `path`, None if it does not exist or cannot be read."""
    try:
        return load(path)
    except UnreadableFileError:
        return None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in `path`, one per line, skipping invalid lines such as an incomplete last one."""
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
    """Return the paths in `folder` that match a glob pattern, in no order; empty if it cannot be read."""
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def why_closed(folder: Path) -> str | None:
    """Return why `folder` cannot be listed; None if it can or does not exist."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except FileNotFoundError:
        return None
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def file_clock(folder: Path) -> float:
    """Return the time in seconds since 1970 by the clock that stamps new files in `folder`, for the ages of files.

    The clocks of nodes and of this machine may differ from it. Falls back to this machine's clock if `folder` is not
    writable.
    """
    try:
        with TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def _text(path: Path, errors: str = "strict") -> str:
    """Read a regular file; reading a pipe or a device could block forever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError("is not a regular file")
    if status.st_size > MOST_BYTES:
        raise UnreadableFileError(f"is damaged: larger than {MOST_BYTES >> 20} MB")
    return path.read_text(encoding="utf-8", errors=errors)


def _append_json(path: Path, value: dict[str, Any]) -> None:
    # A single append of a whole line: lines of two writers do not mix.
    line = f"{atomic.to_json(value)}\n".encode()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # end the incomplete line of a killed writer
            line = b"\n" + line
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, "a line could not be written completely", str(path))
        os.fsync(handle)
    finally:
        os.close(handle)
