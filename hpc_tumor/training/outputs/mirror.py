"""Copy the metrics of a run to TensorBoard; metrics.jsonl stays the record."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from hpc_tumor.console import log
from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir

_NO_SCORES = ("epoch", "part")
_EVENTS = "events.out.tfevents.*"


def check_tensorboard() -> None:
    """Raise UsageError if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise UsageError("tensorboard = true needs the package: pip install 'hpc-tumor[tensorboard]', or leave it out.")


class Mirror:
    """Copies the metrics of each epoch to `tensorboard/` in the run directory, if `enabled`.

    Each start of a run replaces the files of earlier starts, which may lack the last epoch or hold one that is redone.

    Raises UsageError if TensorBoard is not installed.
    """

    def __init__(self, run: RunDir, enabled: bool) -> None:
        self._run = run
        self._copied = 0
        self._writer: Any = None
        if enabled:
            check_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            try:
                for earlier in run.tensorboard.glob(_EVENTS):
                    earlier.unlink(missing_ok=True)
                # Makes a TensorBoard that already shows this run discard the earlier files.
                self._writer = SummaryWriter(str(run.tensorboard), purge_step=0)
            except OSError as error:
                self._give_up(error)
        self.update()

    def update(self) -> None:
        """Copy the lines that were written since the last call."""
        if self._writer is None:
            return
        lines = self._run.read_metrics()
        try:
            for line in lines[self._copied :]:
                for name, value in line.items():
                    if name not in _NO_SCORES and isinstance(value, int | float):
                        self._writer.add_scalar(f"{name}/{line['part']}", value, line["epoch"])
            self._copied = len(lines)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Stop copying; training goes on."""
        self._writer = None
        log(f"the metrics cannot be copied to {self._run.tensorboard}: {error}")
