"""Parse SLURM's output: numbers, times, lists, resources and tables; nonsense is nothing, never an error."""

from __future__ import annotations

import re

from hpc_tumor.cluster.slurm import parse_seconds


def rows(text: str | None, columns: int) -> list[list[str]] | None:
    """Lines of `a|b|c` with so many columns, the first of them not empty; None where there was no answer."""
    if text is None:
        return None
    lines = (line.strip().split("|") for line in text.splitlines())
    return [row for row in lines if len(row) == columns and row[0]]


def settings(text: str | None) -> dict[str, str]:
    """Lines of `Name = value`."""
    pairs = (line.partition("=") for line in (text or "").splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def names(text: str) -> tuple[str, ...] | None:
    """`a,b` → both; None for ALL and for nothing."""
    return None if text in ("", "ALL", "(null)", "N/A") else tuple(name for name in text.split(",") if name)


def first_number(text: str) -> int:
    """`128+` and `24` → the number; 0 where there is none."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def count(text: str) -> int | None:
    """A number; None for UNLIMITED and for nothing."""
    return int(text) if text.isdecimal() else None


def minutes(text: str) -> int | None:
    """`2:00:00`, `6-06:00:00`, `30:00` → minutes, at least 1; None for UNLIMITED, infinite and nothing."""
    seconds = parse_seconds(text)
    return max(1, int(seconds // 60)) if seconds else None


def walltime(minutes: int) -> str:
    """Minutes as SLURM and profiles write them: `02:05:00`."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def gres(text: str) -> tuple[int, tuple[str, ...]]:
    """`gpu:a100:4(S:0-1),shard:8` → the number of GPUs and their types; a type may be 2080ti."""
    gpus, types = 0, []
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        kind, *parts = item.strip().split(":")
        if kind != "gpu":
            continue
        gpus += int(parts.pop()) if parts and parts[-1].isdecimal() else 1
        if parts and parts[0] != "no_consume":
            types.append(parts[0])
    return gpus, tuple(dict.fromkeys(types))


def resources(text: str) -> dict[str, float]:
    """`cpu=96,gres/gpu=4,mem=500G` → the number of each; memory in GB, which is in MB where no letter says more."""
    amounts = {}
    for name, number, unit in re.findall(r"(?:^|,)([^,=]+)=(\d+(?:\.\d+)?)([KMGTP]?)", text):
        amounts[name] = float(number) * (1024 ** ("KMGTP".index(unit or "M") - 2) if name == "mem" else 1)
    return amounts
