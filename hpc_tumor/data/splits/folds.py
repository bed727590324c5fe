"""Stratified random assignment of units (one or more cases each) to folds, or to one part of a given size.

A unit is never divided. The order is that of a hash of the seed and the unit's name, independent of the number and
order of the units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple


class Unit(NamedTuple):
    """Cases or images that stay in one part, with a name, and a stratum to balance."""

    name: str
    stratum: str | int
    members: tuple[int, ...]


def deal_folds(units: Sequence[Unit], folds: int, seed: str) -> list[list[int]]:
    """Assign each unit to one fold; return the unit numbers of each fold.

    Units are assigned from the largest on to the fold with the fewest members of their stratum, then to the smallest.
    Folds differ in the members of a stratum by at most its largest unit, and no fold is empty unnecessarily.
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


def draw_fraction(units: Sequence[Unit], fraction: float, seed: str, *, fill: bool = False) -> list[int]:
    """Draw units with about a `fraction` of the members of each stratum; return their numbers.

    At least one unit of each stratum of two or more is drawn and one is not; if every stratum has only one unit, this
    holds for all units together. A unit is skipped if it would increase the distance from the fraction.

    Args:
        fill: also skip units that exceed the fraction while others do not, which comes closer with large units.
    """
    order = _shuffled(units, seed)
    strata: dict[str | int, list[int]] = {}
    for i in order:
        strata.setdefault(units[i].stratum, []).append(i)
    drawn = [i for members in strata.values() if len(members) > 1 for i in _share(units, members, fraction, fill)]
    return drawn or order[: min(1, len(order) - 1)]


def _share(units: Sequence[Unit], order: Sequence[int], fraction: float, fill: bool) -> list[int]:
    sizes = {i: len(units[i].members) for i in order}
    target = max(1, round(fraction * sum(sizes.values())))
    drawn: dict[int, None] = {}
    total = 0
    for may_exceed in (False, True) if fill else (True,):
        for i in order:
            rest = target - total
            fits = abs(rest - sizes[i]) < rest and (may_exceed or sizes[i] <= rest)
            if fits and i not in drawn and len(drawn) < len(order) - 1:
                drawn[i] = None
                total += sizes[i]
    return list(drawn) or [min(order, key=lambda i: sizes[i])]


def _shuffled(units: Sequence[Unit], seed: str) -> list[int]:
    keys = [hashlib.sha256(f"{seed}\0{unit.name}".encode()).digest() for unit in units]
    return sorted(range(len(units)), key=keys.__getitem__)
