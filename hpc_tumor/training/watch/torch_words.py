"""Meaning of errors of torch, NCCL, gloo and CUDA that have no type of their own: their words are read here alone.

Torch itself is not imported: a rank asks before it has it, or because it could not get it.
"""

from __future__ import annotations

import re

from hpc_tumor.errors import HpcTumorError

_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")
_LOST = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "gloo", "nccl",
    "socket", "timed out waiting", "application timeout",
)  # fmt: skip
# Errors of CUDA, NCCL and gloo that another node or another moment may not show.
_PASSING = re.compile(r"NCCL|gloo|c10d|connection|socket|ECC|uncorrectable|unspecified launch failure", re.IGNORECASE)
ANOMALY_WARNING = "Error detected in"  # begins the warning with the stack of the forward call


def says_no_memory(error: BaseException) -> bool:
    """Return True where torch could not allocate memory, on a GPU or in the host."""
    return _of_torch(error) and _has(error, _MEMORY)


def memory_asked(error: BaseException) -> str:
    """Memory that could not be allocated; torch names bytes, or GiB."""
    words = str(error).replace(",", " ").split()
    for before, number, unit in zip(words, words[1:], words[2:], strict=False):
        if before in ("allocate", "allocated"):
            unit = unit.rstrip(".")
            try:
                value = float(number)
            except ValueError:
                continue
            return f"{value / 1e9:.1f} GB" if unit.startswith("byte") else f"{value:g} {unit}"
    return "some"


def says_rank_lost(error: BaseException) -> bool:
    """Return True where this rank lost another one."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return _of_torch(error) and ("DistError" in names or _has(error, _LOST))


def may_pass(error: BaseException) -> bool:
    """Return True where the network or a device failed, which another start may not meet."""
    return _of_torch(error) and not says_no_memory(error) and _PASSING.search(str(error)) is not None


def says_nan(error: BaseException) -> bool:
    """Return True where the anomaly detection of torch found NaN in the backward pass."""
    return _of_torch(error) and "returned nan values" in str(error)


def failed_function(error: BaseException) -> str | None:
    """Return the operation whose backward pass gave NaN, None where it is not named."""
    match = re.search(r"Function '([^']+)'", str(error))
    return None if match is None else match[1]


def is_anomaly_warning(message: object) -> bool:
    """Return True for the warning that holds the stack of the forward call."""
    return str(message).startswith(ANOMALY_WARNING)


def _of_torch(error: BaseException) -> bool:
    """Return True where the error may be torch's: one of this package says by its type what it means."""
    return isinstance(error, RuntimeError) and not isinstance(error, HpcTumorError)


def _has(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)
