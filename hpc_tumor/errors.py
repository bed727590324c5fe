"""The errors a user can cause. Each names the value, what is allowed and the way out; the CLI prints only that."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum


class Cause(StrEnum):
    """Cause of a failure that code decides by, carried beside its sentence; others are sentences alone."""

    HOST_MEMORY = "host-memory"  # main memory ran out
    GPU_MEMORY = "gpu-memory"
    UNSAID = "unsaid"  # a job ended without a result, and nobody said why


class HpcTumorError(Exception):
    """Base of all errors with a clear way out. `exit_code` is what the command ends with."""

    exit_code = 1
    cause: Cause | None = None


class UsageError(HpcTumorError, ValueError):
    """A wrong option, setting, model, profile or combination of them."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not among those that are known; `brief` is the message without their list."""

    def __init__(self, message: str, brief: str = "") -> None:
        super().__init__(message)
        self.brief = brief or message


class DataError(HpcTumorError, ValueError):
    """Data refused: unreadable, incomplete, of another kind, leaking, or of a newer schema."""

    exit_code = 3


class StoreError(DataError):
    """A store that cannot be used: its `fault`, and the `remedy`, a sentence of its own."""

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(fault, remedy)
        self.fault, self.remedy = fault, remedy

    def __str__(self) -> str:
        return f"{self.fault}. {self.remedy}"


class ClusterError(HpcTumorError, RuntimeError):
    """SLURM is not there, or refused the request."""

    exit_code = 4


class PartialFailure(HpcTumorError, RuntimeError):  # noqa: N818 - some that fail are not the whole in error
    """Some of many runs failed."""

    exit_code = 5


class TrainingError(HpcTumorError, RuntimeError):
    """Training could not go on: a non-finite loss, a lost rank, no memory left."""

    exit_code = 1


class HostMemoryError(TrainingError):
    """Main memory ran out."""

    cause = Cause.HOST_MEMORY


class GpuMemoryError(TrainingError):
    """The memory of a GPU ran out."""

    cause = Cause.GPU_MEMORY


def unknown(what: str, value: object, known: Iterable[str]) -> UnknownNameError:
    """Error for a name that is not among the `known` ones; suggests the nearest."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    near = get_close_matches(str(value).lower(), lower, n=1, cutoff=0.5)
    hint = f" Did you mean {lower[near[0]]!r}?" if near else ""
    brief = f"unknown {what} {value!r}.{hint}"
    return UnknownNameError(f"{brief} Known: {', '.join(names)}.", brief)
