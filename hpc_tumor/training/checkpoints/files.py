"""Checkpoint and weight files: written atomically, verified when read, never executed."""

from __future__ import annotations

import dataclasses
import errno
import json
import random
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from hpc_tumor.errors import DataError, TrainingError
from hpc_tumor.run_dir import Damage
from hpc_tumor.settings import changed_settings, refuse_changes
from hpc_tumor.system import atomic, devices

_FORMAT = 2
# safetensors metadata is text: these keys hold JSON, all others plain text.
_JSON_FACTS = frozenset({"filters", "classes", "exclusive", "image_size", "identity", "state"})

# Errors due to the file: missing, a directory, or truncated (seek before its start). All others are due to the disk.
_OF_THE_FILE = (None, errno.ENOENT, errno.EISDIR, errno.EINVAL)


class DamagedWeights(DataError):  # noqa: N818 - the name says what is wrong
    """Weights lost for good: the file is missing, or its content is not what was written."""

    damage: Damage = "damaged"


class MissingWeights(DamagedWeights):
    """The file does not exist."""

    damage: Damage = "missing"


class UnreadableWeights(DataError):  # noqa: N818 - as above
    """The disk cannot read the weights at the moment; they may be intact."""


@dataclass
class Progress:
    """Progress of training. `epoch` epochs are complete; `step` steps of the next one are done.

    Attributes:
        totals: sums of each rank over the current epoch: loss, correct predictions, counts.
        updates: steps taken over all epochs, including skipped ones.
        skipped: steps skipped because something in them was not finite.
        best_score: of the best epoch so far, larger is better; its loss breaks ties.
        seconds: training time so far, over all starts.
        restarts: number of resumes from a checkpoint.
    """

    epoch: int = 0
    step: int = 0
    totals: list[dict[str, Any]] = field(default_factory=list)
    updates: int = 0
    skipped: int = 0
    best_epoch: int = 0
    best_score: float | None = None
    best_loss: float | None = None
    seconds: float = 0.0
    samples: int = 0
    restarts: int = 0


@dataclass
class BestWeights:
    """Weights of the best epoch on their device, and the progress then; `written`: to be on disk before any checkpoint
    that names them."""

    weights: dict[str, Tensor]
    progress: Progress
    written: bool = False


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every random generator that this rank uses."""
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": devices.random_state(device),  # of the GPU, whatever its maker: the key of the format
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore every random generator of this rank to `state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        devices.set_random_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def write_checkpoint(path: Path, progress: Progress, identity: dict[str, Any], contents: dict[str, Any]) -> None:
    """Write a checkpoint: `contents` are state dictionaries; a resume must match `identity`.

    Raises OSError, or torch's RuntimeError caused by one; an existing checkpoint stays.
    """
    with atomic.atomic_file(path) as file:
        torch.save({"format": _FORMAT, "state": dataclasses.asdict(progress), "identity": identity, **contents}, file)


def load_checkpoint(path: Path, device: torch.device, identity: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint, with `state` as Progress and `notes` on changed settings. Nothing in the file is executed.

    Raises:
        DataError: the file is damaged, of another format, or of a run with other data, another network or settings.
        TrainingError: the disk cannot read it.
    """
    if not is_whole(path):
        raise _damaged(path)
    try:
        contents = torch.load(path, map_location=device, weights_only=True, mmap=False)
        version = contents["format"]
    except Exception as error:  # a damaged archive may raise anything
        raise _damaged(path) from error
    if version != _FORMAT:
        raise DataError(f"{path} has checkpoint format {version}; this version reads {_FORMAT}. Submit a new run.")
    notes = _check_identity(path, contents["identity"], identity)
    return {**contents, "state": Progress(**contents["state"]), "notes": notes}


def is_whole(path: Path) -> bool:
    """Verify the CRC-32 of a checkpoint's tensors, which torch writes but never checks.

    Raises TrainingError if the disk cannot read the file at the moment, so that its state is unknown.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except OSError as error:
        if error.errno in _OF_THE_FILE:
            return False
        raise TrainingError(
            f"{path} cannot be read: {error.strerror or error}. `hpc-tumor resume` the run once its disk is back."
        ) from error
    except Exception:  # a damaged archive may raise anything
        return False


def write_weights(path: Path, weights: dict[str, Tensor], progress: Progress, about: dict[str, Any]) -> None:
    """Write weights as safetensors, with a description and a checksum in the header."""
    weights = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    state = {key: value for key, value in dataclasses.asdict(progress).items() if key != "totals"}
    facts = {**about, "state": state, "crc32c": _checksum(weights)}
    metadata = {key: json.dumps(value) if key in _JSON_FACTS else value for key, value in facts.items()}
    atomic.write_bytes(path, safetensors.torch.save(weights, metadata))


def load_weights(path: Path, identity: dict[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights in `path` on the CPU and their description, with `state` as Progress.

    Raises:
        DamagedWeights: the file is missing or damaged.
        UnreadableWeights: the disk cannot read it.
        DataError: it belongs to a run with other data, another network or other settings.
    """
    try:
        data = path.read_bytes()  # safetensors reports every unreadable file as missing
    except FileNotFoundError as error:
        raise MissingWeights(f"{path} cannot be read: it is missing.") from error
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        weights = safetensors.torch.load(data)
        texts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        facts = {key: _fact(key, text) for key, text in texts.items()}
        intact = facts.pop("crc32c") == _checksum(weights)
        facts["state"] = Progress(**facts["state"])
        identity_in_file = dict(facts["identity"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedWeights(f"{path} cannot be read: it is damaged.") from error
    if not intact:
        raise DamagedWeights(f"{path} cannot be read: it is damaged (checksum mismatch).")
    _check_identity(path, identity_in_file, identity)
    return weights, facts


def _check_identity(path: Path, saved: dict[str, Any], current: dict[str, Any] | None) -> list[str]:
    """Return notes on settings changed since, as far as they may be; raise DataError if anything else differs."""
    notes = []
    for key, value in (current or {}).items():
        before = saved.get(key)
        if key == "settings":
            if not isinstance(before, dict):
                notes.append(f"{path} is from an earlier version: cannot tell whether settings were changed since")
                continue
            allowed, refused = changed_settings(before, value)
            refuse_changes(refused, f"{path} was made with other settings")
            notes += [f"resuming with a changed setting: {change}" for change in allowed]
        elif before != value:
            raise DataError(
                f"{path} was made with {key} {before}, but it is {value} now:"
                " resuming would mix two experiments. Submit a new run."
            )
    return notes


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} cannot be read: it is damaged. Remove it to restart this run from its first epoch.")


def _checksum(weights: dict[str, Tensor]) -> str:
    check = google_crc32c.Checksum()
    for name in sorted(weights):
        check.update(name.encode())
        check.update(weights[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return check.hexdigest().decode()


def _fact(key: str, text: str) -> Any:
    """Parse a metadata value; the key decides what is JSON, since a checksum such as 48336e25 looks like a number."""
    if key not in _JSON_FACTS:
        return text
    return json.loads(text) if text else None  # earlier versions wrote missing filters as an empty text
