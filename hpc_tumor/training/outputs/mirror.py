"""The metrics as TensorBoard reads them. The JSON lines of the run stay the record."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from hpc_tumor.console import log
from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir

_NO_SCORES = ("epoch", "part")
_EVENTS = "events.out.tfevents.*"


def check_tensorboard() -> None:
    """Raises UsageError where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise UsageError("tensorboard = true needs the package: pip install 'hpc-tumor[tensorboard]', or leave it out.")


class Mirror:
    """Copies the lines of each epoch to `tensorboard/` in the run's directory, where it is `wanted`.

    Each start of a run copies all lines anew, and what earlier starts wrote goes: they may have left out the last
    epoch, or written one that is made again.

    Raises UsageError where TensorBoard is not installed.
    """

    def __init__(self, run: RunDir, wanted: bool) -> None:
        self._run = run
        self._copied = 0
        self._writer: Any = None
        if wanted:
            check_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            try:
                for earlier in run.tensorboard.glob(_EVENTS):
                    earlier.unlink(missing_ok=True)
                # A TensorBoard that shows this run now forgets what it had read of them.
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
        """A mirror that cannot be written is no reason to stop training."""
        self._writer = None
        log(f"the metrics cannot be copied to {self._run.tensorboard}: {error}")
