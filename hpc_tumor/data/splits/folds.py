"""Units of one or more cases dealt out at random: into folds, or one share drawn from them, stratum by stratum.

A unit is never cut. The order is that of a hash over the seed and the unit's name: it does not depend on how many units
there are, nor on the order in which they stand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple


class Unit(NamedTuple):
    """What stays together: its name, the stratum to balance, and the cases or images in it."""

    name: str
    stratum: str | int
    members: tuple[int, ...]


def deal_folds(units: Sequence[Unit], folds: int, seed: str) -> list[list[int]]:
    """Numbers of the units of each fold; each unit is in one.

    The largest unit first, each goes to the fold that has fewest members of its stratum, of these to the smallest. So
    two folds differ, in the members of a stratum, by no more than its largest unit, and no fold is empty that could
    have been filled.
    """
    dealt: list[list[int]] = [[] for _ in range(folds)]
    of_stratum: dict[tuple[str | int, int], int] = {}
    sizes = [0] * folds
    for i in sorted(_shuffled(units, seed), key=lambda i: -len(units[i].members)):
        unit = units[i]
        fold = min(range(folds), key=lambda fold: (of_stratum.get((unit.stratum, fold), 0), sizes[fold], fold))
        dealt[fold].append(i)
        sizes[fold] += len(unit.members)
        of_stratum[unit.stratum, fold] = of_stratum.get((unit.stratum, fold), 0) + len(unit.members)
    return dealt


def draw_fraction(units: Sequence[Unit], fraction: float, seed: str) -> list[int]:
    """Numbers of units that together hold a `fraction` of the members of each stratum.

    Of each stratum with two units or more at least one is drawn and one left; of all units, too, where every stratum
    has but one. A unit is passed over where it would lead further from the fraction than it is without.
    """
    order = _shuffled(units, seed)
    strata: dict[str | int, list[int]] = {}
    for i in order:
        strata.setdefault(units[i].stratum, []).append(i)
    drawn = [i for some in strata.values() if len(some) > 1 for i in _share(units, some, fraction)]
    return drawn or order[: min(1, len(order) - 1)]


def _share(units: Sequence[Unit], order: Sequence[int], fraction: float) -> list[int]:
    sizes = {i: len(units[i].members) for i in order}
    wanted = max(1, round(fraction * sum(sizes.values())))
    drawn: list[int] = []
    held = 0
    for i in order:
        if abs(wanted - held - sizes[i]) < wanted - held and len(drawn) < len(order) - 1:
            drawn.append(i)
            held += sizes[i]
    return drawn or [min(order, key=lambda i: sizes[i])]


def _shuffled(units: Sequence[Unit], seed: str) -> list[int]:
    keys = [hashlib.sha256(f"{seed}\0{unit.name}".encode()).digest() for unit in units]
    return sorted(range(len(units)), key=keys.__getitem__)
