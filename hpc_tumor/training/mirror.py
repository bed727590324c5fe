"""The metrics as TensorBoard reads them. The JSON lines of the run stay the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpc_tumor.errors import UsageError

if TYPE_CHECKING:
    from hpc_tumor.training.setup import Setup

_NO_SCORES = ("epoch", "part")


class Mirror:
    """Copies the lines of each epoch to `tensorboard/` in the run's directory, where the experiment asks for it.

    Raises UsageError where TensorBoard is not installed.
    """

    def __init__(self, setup: Setup) -> None:
        self._run = setup.run
        self._done = setup.state.epoch
        self._writer: Any = None
        if setup.experiment.tensorboard and setup.distributed.is_main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UsageError(
                    "tensorboard = true needs the package: pip install 'hpc-tumor[tensorboard]', or leave it out."
                ) from error
            # What an interrupted start wrote of later epochs is about to be written again.
            self._writer = SummaryWriter(str(setup.run.tensorboard), purge_step=self._done + 1)

    def update(self) -> None:
        """Copy the lines of the epochs since the last call."""
        if self._writer is None:
            return
        lines = [line for line in self._run.read_metrics() if line["epoch"] > self._done]
        for line in lines:
            for name, value in line.items():
                if name not in _NO_SCORES and isinstance(value, int | float):
                    self._writer.add_scalar(f"{name}/{line['part']}", value, line["epoch"])
        self._done = max([self._done, *(line["epoch"] for line in lines)])
        self._writer.flush()
