"""Classify errors of torch, NCCL, XCCL, gloo and GPUs that have no type of their own, by their text.

Does not import torch: a rank may ask before torch is imported, or because that failed.
"""

from __future__ import annotations

import re

from hpc_tumor.errors import HpcTumorError

_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "out of memory",
    "alloc_failed",  # cuBLAS and cuDNN
    "unable to find an engine",  # cuDNN, if no algorithm of a convolution gets its workspace
)  # fmt: skip
_LOST = (
    "connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "gloo", "nccl",
    "xccl", "socket", "timed out waiting", "application timeout",
)  # fmt: skip
# Errors of GPUs, NCCL (also RCCL), XCCL and gloo that may not recur on another node or at another time.
_PASSING = re.compile(
    r"NCCL|XCCL|gloo|c10d|connection|socket|ECC|uncorrectable|unspecified launch failure", re.IGNORECASE
)
ANOMALY_WARNING = "Error detected in"  # start of the warning with the stack of the forward call


def is_allocation_failure(error: BaseException) -> bool:
    """Return True if torch could not allocate memory, on a GPU or on the host."""
    return _of_torch(error) and _has(error, _MEMORY)


def requested_memory(error: BaseException) -> str:
    """Return the memory that could not be allocated, as torch's message gives it in bytes or GiB."""
    words = str(error).replace(",", " ").split()
    for before, number, unit in zip(words, words[1:], words[2:], strict=False):
        if before in ("allocate", "allocated"):
            unit = unit.rstrip(".")
            try:
                value = float(number)
            except ValueError:
                continue
            return f"{value / 1e9:.1f} GB" if unit.startswith("byte") else f"{value:g} {unit}"
    return "more memory"


def is_rank_loss(error: BaseException) -> bool:
    """Return True if this rank lost the connection to another one."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return _of_torch(error) and ("DistError" in names or _has(error, _LOST))


def is_transient(error: BaseException) -> bool:
    """Return True if the network or a device failed, so that another start may succeed."""
    return _of_torch(error) and not is_allocation_failure(error) and _PASSING.search(str(error)) is not None


def is_nan_anomaly(error: BaseException) -> bool:
    """Return True if torch's anomaly detection found NaN in the backward pass."""
    return _of_torch(error) and "returned nan values" in str(error)


def failed_function(error: BaseException) -> str | None:
    """Return the operation whose backward pass gave NaN; None if it is not named."""
    match = re.search(r"Function '([^']+)'", str(error))
    return None if match is None else match[1]


def is_anomaly_warning(message: object) -> bool:
    """Return True for the warning that holds the stack of the forward call."""
    return str(message).startswith(ANOMALY_WARNING)


def _of_torch(error: BaseException) -> bool:
    """Return True for a RuntimeError that is not one of this package's errors, which have types."""
    return isinstance(error, RuntimeError) and not isinstance(error, HpcTumorError)


def _has(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)
