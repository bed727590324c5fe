"""Errors for users. Messages name the value, the allowed values and the fix; the CLI prints them without traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum


class Cause(StrEnum):
    """Cause of a failure that code acts on; other causes are only described in the reason."""

    HOST_MEMORY = "host-memory"  # main memory ran out
    GPU_MEMORY = "gpu-memory"
    UNSAID = "unsaid"  # a job ended without a result or a recorded reason


class HpcTumorError(Exception):
    """Base of all errors shown to users. `exit_code` is the exit code of the command."""

    exit_code = 1
    cause: Cause | None = None


class UsageError(HpcTumorError, ValueError):
    """A wrong option, setting, model, profile or combination of them."""

    exit_code = 2


class UnknownNameError(UsageError):
    """An unknown name; `brief` is the message without the list of known names."""

    def __init__(self, message: str, brief: str = "") -> None:
        super().__init__(message)
        self.brief = brief or message


class DataError(HpcTumorError, ValueError):
    """Invalid data: unreadable, incomplete, unsupported, leaking, or of a newer schema."""

    exit_code = 3


class StoreError(DataError):
    """An unusable store: the `fault`, and the `remedy` as a separate sentence."""

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(fault, remedy)
        self.fault, self.remedy = fault, remedy

    def __str__(self) -> str:
        return f"{self.fault}. {self.remedy}"


class ClusterError(HpcTumorError, RuntimeError):
    """SLURM is not available or refused the request."""

    exit_code = 4


class PartialFailure(HpcTumorError, RuntimeError):  # noqa: N818 - not an error of the whole command
    """Some of many runs failed."""

    exit_code = 5


class TrainingError(HpcTumorError, RuntimeError):
    """Training cannot continue: non-finite loss, lost rank, out of memory."""

    exit_code = 1


class HostMemoryError(TrainingError):
    """Main memory ran out."""

    cause = Cause.HOST_MEMORY


class GpuMemoryError(TrainingError):
    """GPU memory ran out."""

    cause = Cause.GPU_MEMORY


def unknown(what: str, value: object, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is not in `known`, suggesting the closest one."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    near = get_close_matches(str(value).lower(), lower, n=1, cutoff=0.5)
    hint = f" Did you mean {lower[near[0]]!r}?" if near else ""
    brief = f"unknown {what} {value!r}.{hint}"
    return UnknownNameError(f"{brief} Known: {', '.join(names)}.", brief)
