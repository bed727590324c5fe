"""Checkpoints: written whole or not at all, checked when read, never executed, and enough to go on exactly."""

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
from hpc_tumor.system import atomic

_FORMAT = 2
# Metadata of weights, which safetensors keeps as texts: these are JSON, all others are the text itself.
_JSON_FACTS = frozenset({"filters", "classes", "exclusive", "image_size", "identity", "state"})

# Of a file that is none, or is cut so that its archive points to before its beginning; all others are of the disk.
_OF_THE_FILE = (None, errno.ENOENT, errno.EISDIR, errno.EINVAL)


class DamagedWeights(DataError):  # noqa: N818 - what is wrong with them is the error
    """Weights that are gone for good: the file is missing, or its content is not what was written."""

    damage: Damage = "damaged"


class MissingWeights(DamagedWeights):
    """There is no such file."""

    damage: Damage = "missing"


class UnreadableWeights(DataError):  # noqa: N818 - as above
    """Weights that the disk does not give at this moment: they may be whole."""


@dataclass
class TrainState:
    """Progress of training. `epoch` epochs are complete; `step` steps of the next one are done.

    Attributes:
        totals: what each rank has added up of the epoch under way: loss, right answers, counts.
        updates: steps taken over all epochs, those that were skipped among them.
        skipped: steps that were left out because something in them was not finite.
        best_score: of the best epoch so far, larger is better; its loss breaks ties.
        seconds: training time so far, over all starts.
        restarts: how often the run went on from a checkpoint.
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


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator this rank uses."""
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every random generator of this rank back to `state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def write_checkpoint(path: Path, state: TrainState, identity: dict[str, Any], parts: dict[str, Any]) -> None:
    """Write a checkpoint: `parts` are state dictionaries; `identity` is what a resume must agree with.

    Raises OSError, or torch's RuntimeError about one; the checkpoint that was there stays.
    """
    with atomic.atomic_file(path) as file:
        torch.save({"format": _FORMAT, "state": dataclasses.asdict(state), "identity": identity, **parts}, file)


def load_checkpoint(path: Path, device: torch.device, identity: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, with `state` as a TrainState. Nothing in the file is executed.

    `notes` are lines on what the identity has of settings that were changed, and may be, or cannot tell of.

    Raises:
        DataError: the file is damaged, of another format, or of a run with other data, another network or settings.
        TrainingError: the disk does not give it.
    """
    if not is_whole(path):
        raise _damaged(path)
    try:
        contents = torch.load(path, map_location=device, weights_only=True, mmap=False)
        found = contents["format"]
    except Exception as error:  # a damaged archive fails in many ways, all of which mean the same here
        raise _damaged(path) from error
    if found != _FORMAT:
        raise DataError(f"{path} has checkpoint format {found}; this version reads {_FORMAT}. Submit a new run.")
    notes = _check_identity(path, contents["identity"], identity)
    return {**contents, "state": TrainState(**contents["state"]), "notes": notes}


def is_whole(path: Path) -> bool:
    """Return True where every byte of a checkpoint's tensors is as written: torch writes their CRC-32, but never looks.

    Raises TrainingError where the disk does not give it at this moment: nobody knows whether it is whole.
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
    except Exception:  # what is damaged fails in many ways
        return False


def write_weights(path: Path, weights: dict[str, Tensor], state: TrainState, about: dict[str, Any]) -> None:
    """Write weights as safetensors, which other tools read, with what they are of and a checksum in the header."""
    weights = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights.items()}
    kept = {key: value for key, value in dataclasses.asdict(state).items() if key != "totals"}
    facts = {**about, "state": kept, "crc32c": _checksum(weights)}
    metadata = {key: json.dumps(value) if key in _JSON_FACTS else value for key, value in facts.items()}
    atomic.write_bytes(path, safetensors.torch.save(weights, metadata))


def load_weights(path: Path, identity: dict[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights in `path` on the CPU, and what the file says of them, with `state` as a TrainState.

    Raises:
        DamagedWeights: the file is missing or damaged.
        UnreadableWeights: the disk does not give it.
        DataError: it is of a run with other data, another network or other settings.
    """
    try:
        data = path.read_bytes()  # safetensors says of every file that it cannot open that it is not there
    except FileNotFoundError as error:
        raise MissingWeights(f"{path} cannot be read: it is missing.") from error
    except OSError as error:
        raise UnreadableWeights(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        weights = safetensors.torch.load(data)
        texts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        facts = {key: _fact(key, text) for key, text in texts.items()}
        whole = facts.pop("crc32c") == _checksum(weights)
        facts["state"] = TrainState(**facts["state"])
        found = dict(facts["identity"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedWeights(f"{path} cannot be read: it is damaged.") from error
    if not whole:
        raise DamagedWeights(f"{path} cannot be read: it is damaged, its checksum differs.")
    _check_identity(path, found, identity)
    return weights, facts


def _check_identity(path: Path, found: dict[str, Any], wanted: dict[str, Any] | None) -> list[str]:
    """Lines on settings that were changed and may be. Raises DataError where something else differs."""
    notes = []
    for key, value in (wanted or {}).items():
        was = found.get(key)
        if key == "settings":
            if not isinstance(was, dict):
                notes.append(f"{path} is of an earlier version: whether a setting was changed since is not known")
                continue
            may, must_not = changed_settings(was, value)
            refuse_changes(must_not, f"{path} was made with other settings")
            notes += [f"going on with another setting: {words}" for words in may]
        elif was != value:
            raise DataError(
                f"{path} was made with {key} {was}, but now it is {value}:"
                " going on would mix two experiments. Submit a new run."
            )
    return notes


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} cannot be read: it is damaged. Remove it to start this run again from its first epoch.")


def _checksum(weights: dict[str, Tensor]) -> str:
    check = google_crc32c.Checksum()
    for name in sorted(weights):
        check.update(name.encode())
        check.update(weights[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return check.hexdigest().decode()


def _fact(key: str, text: str) -> Any:
    """A value of the metadata. Which are JSON is decided by the key: a checksum such as 48336e25 is no number."""
    if key not in _JSON_FACTS:
        return text
    return json.loads(text) if text else None  # earlier versions wrote no number of filters as an empty text
