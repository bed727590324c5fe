"""A disk that went away is not a dataset that became smaller: how the two are told apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hpc_tumor.data.case import Case
from hpc_tumor.errors import DataError

_SAMPLE = 8  # cases looked at


def refuse_vanished(before: Collection[str], there: Collection[str], source: Path, store: Path) -> None:
    """Raises DataError where more than half of the cases in the store are no longer `there`, in the source.

    An unmounted disk leaves an empty or an older folder behind, and the store would shrink to what that holds.
    """
    gone = sorted(set(before) - set(there))
    if 2 * len(gone) > len(before):
        raise DataError(
            f"{source} lacks {len(gone):,} of the {len(before):,} cases in {store}, such as {gone[0]}: is its disk"
            " mounted? The store is untouched. To take these cases out of it, add --prune."
        )


def refuse_lost(before: Collection[str], left: Collection[str], failed: Sequence[tuple[str, str]], store: Path) -> None:
    """Raises DataError where more than half of the store's cases would go since they cannot be read now."""
    lost = sorted(set(before) - set(left))
    if failed and 2 * len(lost) > len(before):
        raise DataError(
            f"{len(lost):,} of the {len(before):,} cases in {store} cannot be converted again, such as {failed[0][0]}:"
            f" {failed[0][1]} None was removed. Mend them and run the same command again, or remove them with --prune."
        )


def why_unreadable(cases: Sequence[Case], failed: Collection[str]) -> str | None:
    """Reason why no case can be read any more, as after the loss of a network mount; None where others can.

    Looks at the first bytes of a few cases all over the dataset.
    """
    others = [case for case in cases if case.id not in failed and case.files]
    reason = None
    for case in others[:: max(1, -(-len(others) // _SAMPLE))]:
        try:
            with next(iter(case.files.values())).path.open("rb") as file:
                file.read(1)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return None
    return reason
