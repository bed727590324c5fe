"""What happens when a loss or a gradient is no longer finite: the step changes nothing, and is named."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.errors import TrainingError
from hpc_tumor.training.watch.heartbeat import say

if TYPE_CHECKING:
    from hpc_tumor.training.working_set import Setup

_NAMED = 5  # cases, in the message
_BEHIND = {"cpu": 0, "cuda": 1}  # steps that the look at a flag lags behind: a GPU is not waited for


@dataclass
class _Looked:
    """A step that was taken: whether something in it was not finite, as a number that may still be on its way."""

    flag: Tensor
    arrived: Any
    batch: Batch
    losses: Tensor
    epoch: int


class FiniteGuard:
    """Looks at the flag of each step, on every rank alike, and keeps the batch of one that was not finite.

    The optimizer itself leaves the weights alone in such a step, so that a look that comes a step later, as on GPUs,
    comes in time.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._waiting: deque[_Looked] = deque()

    def note(self, flag: Tensor, batch: Batch, losses: Tensor, epoch: int) -> None:
        """A step was taken. `flag` is a number on the device, above 0 where it was not finite on any rank."""
        arrived = None
        if flag.is_cuda:
            flag = torch.empty_like(flag, device="cpu", pin_memory=True).copy_(flag, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append(_Looked(flag, arrived, batch, losses, epoch))

    def look(self, totals: dict[str, Any], everything: bool = False) -> None:
        """Look at the flags that are due, or at all.

        Raises TrainingError where more steps were not finite than the recipe allows.
        """
        behind = 0 if everything else _BEHIND[self._setup.distributed.device.type]
        while len(self._waiting) > behind:
            looked = self._waiting.popleft()
            if looked.arrived is not None:
                looked.arrived.synchronize()
            if looked.flag.item() > 0:
                self._refuse(looked, totals)

    def _refuse(self, looked: _Looked, totals: dict[str, Any]) -> None:
        setup, batch = self._setup, looked.batch
        totals["samples"] -= batch.counted
        setup.state.skipped += 1
        place = f"epoch {looked.epoch + 1}, step {batch.step + 1}"
        what, names = self._blame(looked)
        allowed = setup.experiment.recipe.skip_nonfinite
        if setup.state.skipped <= allowed:
            if setup.distributed.is_main:
                say(f"{place} skipped ({setup.state.skipped} of {allowed}): {what} not finite; {names}")
                setup.run.add_event("skipped", epoch=looked.epoch + 1, step=batch.step + 1, reason=what, cases=names)
            return
        path = setup.run.broken_batch(looked.epoch + 1, batch.step + 1, setup.distributed.rank)
        kept = all(setup.distributed.gather(self._keep(looked, path)))
        where = f"The batch is kept in {path.parent}." if kept else "The batch could not be kept: no room on the disk."
        after = f", after {allowed} that were skipped" if allowed else ""
        raise TrainingError(
            f"{what} no longer finite at {place}{after} ({names}). {where} Lower"
            " recipe.learning_rate, set recipe.clip_gradients=1, hardware.precision=float32 or recipe.skip_nonfinite=N."
        )

    def _blame(self, looked: _Looked) -> tuple[str, str]:
        """What was not finite, and in which cases, over all ranks."""
        batch, part = looked.batch, self._setup.train.part
        broken = (~looked.losses.isfinite()).nonzero().flatten().tolist() if batch.counted else []
        mine = [part.name(int(batch.positions[index])) for index in broken]
        everyone = [part.name(int(position)) for position in batch.positions[: batch.counted]]
        gathered = self._setup.distributed.gather((mine, everyone))
        cases = [name for names, _ in gathered for name in names]
        what = "the loss is" if cases else "the gradients are"
        cases = cases or [name for _, names in gathered for name in names]
        more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
        return what, f"{', '.join(cases[:_NAMED])}{more}"

    def _keep(self, looked: _Looked, path: Any) -> bool:
        batch, setup = looked.batch, self._setup
        names = [setup.train.part.name(int(position)) for position in batch.positions]
        contents = {"images": batch.images, "targets": batch.targets, "cases": names, "losses": looked.losses}
        if setup.distributed.is_main:
            # The broken step left the weights alone, but not batch norm's running statistics. On a GPU they are those
            # after the step behind it.
            contents["model"] = setup.bare.state_dict()
        try:
            torch.save(contents, path)
        except (OSError, RuntimeError):  # torch turns a failed write into a RuntimeError
            path.unlink(missing_ok=True)
            return False
        return True


def total_norm(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Norm of all gradients together, on their device; not finite where one of them is not."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
