"""Facts that the conductor passes to its child processes, and what a part does with them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True)
class Job:
    """A child's request.

    Attributes:
        device: torch's name of the device: cpu, cuda:0 (also AMD's) or xpu:0; gpu until one was found.
        quick: a trial of the script: tiny networks, images and batches.
        folder: temporary folder of the whole report.
        formats: number formats of the device, the fastest first.
    """

    device: str
    quick: bool
    folder: str
    formats: tuple[str, ...] = ("float32",)

    def store(self, name: str) -> Path:
        """Return a synthetic store: of a task, or another that `data` makes."""
        return Path(self.folder) / f"{name}.zarr"

    @property
    def raw(self) -> Path:
        """Folder of the raw synthetic data."""
        return Path(self.folder) / "raw"

    @property
    def runs(self) -> Path:
        """Folder of the run directories."""
        return Path(self.folder) / "runs"

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """Return the job of `to_json`."""
        return cls(**{**values, "formats": tuple(values["formats"])})


class Tell:
    """Sends what a child measures to the conductor at once, one JSON object a line, so that nothing is lost."""

    def __init__(self, channel: IO[str]) -> None:
        self._channel = channel

    def __call__(self, **values: Any) -> None:
        """Add values to the current item; a dictionary is merged into an earlier one."""
        self.send({"values": values})

    def check(self, name: str, passed: bool | None, **details: Any) -> None:
        """Add a check to the current item; None: it cannot be made here, and `why` says so."""
        self.send({"check": {"name": name, "passed": passed, **details}})

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        print(json.dumps(message, default=str), file=self._channel, flush=True)


def tell_conductor() -> Tell:
    """Return a `Tell` on this process's stdout; what is printed from now on goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(2, 1)
    return Tell(channel)
