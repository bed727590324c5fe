"""Checks that distinguish an unmounted disk from cases that were removed on purpose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hpc_tumor.data.case import Case
from hpc_tumor.errors import DataError

_SAMPLE = 8  # cases checked


def refuse_vanished(before: Collection[str], present: Collection[str], source: Path, store: Path) -> None:
    """Raise DataError if more than half of the store's cases are absent from the source.

    The mount point of an unmounted disk is an empty or outdated folder, to which the store would shrink.
    """
    gone = sorted(set(before) - set(present))
    if 2 * len(gone) > len(before):
        raise DataError(
            f"{source} lacks {len(gone):,} of the {len(before):,} cases in {store}, such as {gone[0]}: is its disk"
            " mounted? The store is unchanged. To remove these cases from it, add --prune."
        )


def refuse_lost(
    before: Collection[str], remaining: Collection[str], failed: Sequence[tuple[str, str]], store: Path
) -> None:
    """Raise DataError if more than half of the store's cases would be removed because they cannot be read."""
    lost = sorted(set(before) - set(remaining))
    if failed and 2 * len(lost) > len(before):
        raise DataError(
            f"{len(lost):,} of the {len(before):,} cases in {store} cannot be converted again, such as {failed[0][0]}:"
            f" {failed[0][1]} None was removed. Repair them and run the same command again, or remove them with"
            " --prune."
        )


def why_unreadable(cases: Sequence[Case], failed: Collection[str]) -> str | None:
    """Return why no case can be read any more (a lost network mount), or None if one can.

    Reads a byte of a few cases across the dataset.
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
