"""Cases that were published without labels, for validation or testing: nothing can be trained or scored on them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from hpc_tumor.data.case import Case

_NAME = re.compile(r"validation|testing|(?:^|[_\-.])test(?:$|[_\-.])", re.IGNORECASE)


def without_labels(cases: Sequence[Case], label: str) -> set[str]:
    """Ids of the cases below folders whose name says validation or test, and that hold no file of the role `label`.

    A case that lacks its labels among others that have them is not meant: it is damaged.
    """
    groups: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in cases:
        parts = PurePosixPath(next(iter(case.files.values())).relative).parts[:-1]
        at = next((i for i, part in enumerate(parts, 1) if _NAME.search(part)), None)
        if at is not None:
            groups[parts[:at]].append(case)
    return {case.id for group in groups.values() if not any(label in c.files for c in group) for case in group}
