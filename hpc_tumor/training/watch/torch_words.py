"""Meaning of errors of torch, NCCL, gloo and CUDA that have no type of their own: their words are read here alone.

Torch itself is not imported: a rank asks before it has it, or because it could not get it.
"""

from __future__ import annotations

import re

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
    return isinstance(error, RuntimeError) and _has(error, _MEMORY)


def says_rank_lost(error: BaseException) -> bool:
    """Return True where this rank lost another one."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, RuntimeError) and ("DistError" in names or _has(error, _LOST))


def may_pass(error: BaseException) -> bool:
    """Return True where the network or a device failed, which another start may not meet."""
    return isinstance(error, RuntimeError) and not says_no_memory(error) and _PASSING.search(str(error)) is not None


def says_nan(error: BaseException) -> bool:
    """Return True where the anomaly detection of torch found NaN in the backward pass."""
    return isinstance(error, RuntimeError) and "returned nan values" in str(error)


def failed_function(error: BaseException) -> str | None:
    """Return the operation whose backward pass gave NaN, None where it is not named."""
    match = re.search(r"Function '([^']+)'", str(error))
    return None if match is None else match[1]


def is_anomaly_warning(message: object) -> bool:
    """Return True for the warning that holds the stack of the forward call."""
    return str(message).startswith(ANOMALY_WARNING)


def _has(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)
