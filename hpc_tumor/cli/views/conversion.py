"""Show conversions, splits, cluster profiles and cleaning, as tables and lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.states import State
from hpc_tumor.config import ClusterProfile
from hpc_tumor.console import out, size
from hpc_tumor.errors import DataError, PartialFailure
from hpc_tumor.table import Column, Table
from hpc_tumor.vocabulary import counted, duration, hours

if TYPE_CHECKING:
    from hpc_tumor.cluster.describe.discover import Discovery
    from hpc_tumor.cluster.observe.clean import Cleaning, Kind
    from hpc_tumor.data.convert.prepare import PrepareSummary
    from hpc_tumor.data.raw.several import Sources
    from hpc_tumor.data.raw.sources import SourceReport
    from hpc_tumor.data.splits.splits import Split
    from hpc_tumor.data.store.store import Store

MAX_REFUSED = 20  # cases listed individually
MAX_SIZES = 20  # runs listed individually, largest first
LEFTOVERS: dict[Kind, str] = {
    "checkpoints": "checkpoints of finished runs",
    "temporary": "temporary files of ended processes",
    "pickles": "job pickles of finished runs",
    "code": "code snapshots no unfinished run needs",
    "staging": "files of unfinished conversions",
    "copies": "copies of stores on local disk",
}
NOUNS = ("link", "Zarr store")  # kinds of skipped files that need a plural; the others are suffixes


def show_sources(sources: Sources) -> None:
    """Describe the sources of a conversion, and warn of what is noted on them."""
    for name, report in sources.reports.items():
        for line in source_lines(report, name):
            out.note(line)
    for note in sources.notes:
        out.warning(note)


def source_lines(report: SourceReport, name: str = "") -> list[str]:
    """Return lines that describe a folder of raw scans, and the name of the source if it has one."""
    prefix, cases = f"{name} = " if name else "", counted(len(report.cases), "case")
    lines = [f"{prefix}{report.listing.source}: {report.dataset}, {cases}, {size(report.bytes)}"]
    parts: dict[str, list[str]] = {}
    for group, count in report.groups.items():
        part, _, name = group.rpartition("/")
        parts.setdefault(part or "edition", []).append(f"{name} {count:,}" if part else f"{name} ({count:,})")
    lines += [f"  {part:<7}  {', '.join(groups)}" for part, groups in parts.items()]
    if report.spellings:
        mapped = ", ".join(f"{folder} to {kind}" for folder, kind in report.spellings.items())
        lines += wrap(mapped, 80, initial_indent="  mapped   ", subsequent_indent=" " * 11)
    if report.not_taken:
        kinds = report.not_taken.items()
        lines.append(
            f"skipped: {', '.join(counted(n, kind) if kind in NOUNS else f'{n:,} {kind}' for kind, n in kinds)}"
        )
    return lines


def summary_lines(summary: PrepareSummary) -> list[tuple[str, str]]:
    """Return lines on a conversion and the contents of the store."""
    images = bool(summary.parts)
    counts = [("converted", summary.converted), ("unchanged", summary.kept), ("removed", summary.removed)]
    changes = ", ".join(f"{count:,} {change}" for change, count in counts if count)
    classes = ", ".join(f"{name} {count:,}" for name, count in summary.classes.items())
    lines = [
        ("store", f"{summary.store}: {size(summary.bytes_after)}, from {size(summary.bytes_before)}"),
        ("images" if images else "cases", f"{summary.cases:,} ({changes})"),
    ]
    if images:
        lines.append(("classes", classes))
        lines.append(("published parts", ", ".join(f"{part} {count:,}" for part, count in summary.parts.items())))
        leaking = f"; {counted(summary.leaking, 'test image')} duplicated among the training images"
        near = counted(summary.near_duplicates, "near-duplicate")
        duplicates = f"{counted(summary.duplicates, 'exact duplicate')}, {near}"
        lines.append(("duplicates", f"{duplicates}{leaking if summary.leaking else ''}"))
        patients = counted(summary.known_patients, "patient")
        known = f"{summary.known_images:,} of {counted(summary.cases, 'image')} show {patients} of the Cheng set"
        lines.append(("patients", known if summary.known_images else "unknown"))
        for name, own in summary.sources.items():
            lines.append(("" if lines[-1][0] in ("sources", "") else "sources", _source(name, own)))
    else:
        lines.append(("slices", f"{summary.slices:,}"))
        lines.append(("labels", f"{classes} (slices)"))
        if any(summary.clinical.values()):
            lines.append(("clinical", _clinical(summary.clinical)))
    lines.append(("fingerprint", summary.fingerprint[:12]))
    lines.append(("time", duration(summary.seconds)))
    return lines


def _source(name: str, counts: Mapping[str, int]) -> str:
    shared = [
        f"{counts[key]:,} {text}"
        for key, text in (("copies", "copied in others"), ("patients", "of patients of others"))
        if counts[key]
    ]
    return f"{name} {counted(counts['images'], 'image')}{': ' if shared else ''}{', '.join(shared)}"


def _clinical(known: Mapping[str, int]) -> str:
    alive = f" ({known['alive']:,} alive)" if known["alive"] else ""
    parts = [
        f"{name} of {known[name]:,}{alive if name == 'survival' else ''}"
        for name in ("grade", "survival", "age", "resection")
        if known[name]
    ]
    return ", ".join(parts)


def failed_cases_error(summary: PrepareSummary) -> DataError:
    """Warn of each case that could not be converted, and return the error."""
    for _, reason in summary.failed[:MAX_REFUSED]:
        out.warning(reason)
    if len(summary.failed) > MAX_REFUSED:
        out.warning(f"and {len(summary.failed) - MAX_REFUSED} more; --json lists all")
    stored = len(summary.still_stored)
    total = counted(summary.cases + len(summary.failed) - stored, "case")
    earlier = f"; {stored:,} of them remain{'s' * (stored == 1)} in the store as converted before" if stored else ""
    return DataError(
        f"{len(summary.failed):,} of {total} could not be converted, see above{earlier}. The others are in the store."
        " Repair these cases or remove them from the source, and run the same command again."
    )


def split_summary(split: Split, store: Store) -> dict[str, Any]:
    """Return the numbers of patients, cases and slices in each part of a split, and of cases by class or grade."""
    from hpc_tumor.data.splits.units import patient_numbers

    strata = _strata(store)
    patients = patient_numbers(store) if store.task == "segmentation" else None
    parts = {}
    for name, numbers in split.parts.items():
        cases = sorted(set(numbers[:, 0].tolist())) if numbers.ndim == 2 else numbers.tolist()
        counts = Counter(strata[case] for case in cases)
        sizes = {} if patients is None else {"patients": len(set(patients[cases].tolist()))}
        sizes |= {"cases": len(cases)} | ({"slices": len(numbers)} if numbers.ndim == 2 else {})
        parts[name] = {**sizes, "strata": {key: counts[key] for key in sorted(set(strata))}}
    about: dict[str, Any] = {
        "store": store.path,
        "fingerprint": store.fingerprint,
        "split": split.kind,
        "seed": split.seed,
    }
    about |= {"fold": split.fold, "leaks": split.leaks}
    if split.leakage is not None:
        about |= {"leakage": split.leakage.as_json()}
        about |= {"conflicts": {"left_out": split.excluded, "in_parts": split.conflicting}}
    if split.shared:
        about |= {"shared_with_test_source": split.shared}
    if split.unknown:
        about |= {"of_no_known_slice": split.unknown}
    return {**about, "parts": parts}


def split_table(split: Split, store: Store) -> Table:
    """Return a table of a split with a row per part and a column per class or grade."""
    from hpc_tumor.data.splits.units import describe_patients, repeated_cases

    values = split_summary(split, store)
    unit = "images" if store.task == "classification" else "cases"
    names = sorted(set(_strata(store)))
    repeated = repeated_cases(store) if store.task == "segmentation" else {}
    sizes = {"patients": "patients"} if repeated else {}
    sizes |= {"cases": unit, "slices": "slices"} if split.test.ndim == 2 else {"cases": unit}
    columns = [Column("part", "left"), *map(Column, [*sizes.values(), *names])]
    rows = []
    for part, counts in values["parts"].items():
        cells = [*(counts[size] for size in sizes), *(counts["strata"][name] for name in names)]
        rows.append((part, *(f"{cell:,}" for cell in cells)))
    fold = "" if split.fold is None else f", fold {split.fold}"
    shared = [f"{describe_patients(len(store), repeated)}."] if repeated else []
    title = f"{store.path.name} · split {split.kind}{fold} ({_leaks(split)})"
    return Table(title, tuple(columns), tuple(rows), (*shared, *_split_notes(split, store)))


def _leaks(split: Split) -> str:
    if split.leaks:
        return "leaks"
    return "does not leak" if split.leakage is None else "no leak found"


def _split_notes(split: Split, store: Store) -> tuple[str, ...]:
    from hpc_tumor.data.splits.splits import image_notes

    notes = [f"{note[0].upper()}{note[1:]}." for note in image_notes(split)]
    if store.task == "classification" and not store.names_patients:
        notes.append(
            f"The store is of an earlier version and names no patients: hpc-tumor patients {store.path} adds them."
        )
    left_out = split.excluded + split.shared + split.unknown
    rest = len(store) - left_out - sum(map(len, (split.train, split.val, split.test)))
    if store.task == "classification" and rest:
        why = "with the pixels of others"
        if split.kind == "deduplicated":
            why = "duplicates of others, or training images also in the test part"
        elif split.seed is None:
            why = "not listed in the split file"
        notes.append(f"{counted(rest, 'image')} in no part: {why}.")
    if not len(split.val):
        notes.append("No validation part: the last epoch is used as the best.")
    return tuple(notes)


def clusters_table(profiles: Sequence[ClusterProfile]) -> Table:
    """Return a table of cluster profiles."""
    columns = (
        Column("cluster", "left"), Column("GPUs", keep=80), Column("model", "left", 60), Column("CPUs", keep=40),
        Column("memory, GB", keep=40), Column("walltime", keep=50), Column("account", "left", 30),
        Column("description", "left", 5),
    )  # fmt: skip
    rows = []
    for profile in profiles:
        node, limits = profile.node, profile.limits
        walltime = "" if profile.name == LOCAL else hours(limits.walltime)
        rows.append((
            profile.name, str(node.gpus or "none"), node.gpu_model or "", str(node.cpus), f"{node.memory_gb:.0f}",
            walltime, profile.slurm.account or "", profile.description,
        ))  # fmt: skip
    return Table("", columns, tuple(rows), ("GPUs, CPUs and memory are per node.",))


def discovery_lines(discovery: Discovery) -> list[tuple[str, str]]:
    """Return lines on the path and contents of a new profile."""
    slurm, node, limits = discovery.profile.slurm, discovery.profile.node, discovery.profile.limits
    model = f" ({node.gpu_model})" if node.gpu_model else ""
    gpus = f"{counted(node.gpus, 'GPU')}{model}" if node.gpus else "no GPUs"
    jobs = ((limits.nodes, "nodes"), (limits.running_jobs, "running jobs"), (limits.queued_jobs, "queued jobs"))
    counts = "".join(f", {number} {unit}" for number, unit in jobs if number)
    optional = {
        "account": slurm.account, "QOS": slurm.qos, "GPU type": slurm.gpu_type, "feature": slurm.constraint
    }  # fmt: skip
    return [
        ("written", str(discovery.path)),
        ("partition", slurm.partition or ""),
        ("node", f"{gpus}, {node.cpus} CPUs, {node.memory_gb:.0f} GB"),
        ("limits", f"{hours(limits.walltime)}{counts}"),
        *((name, value) for name, value in optional.items() if value),
        *([("requeue", "disabled: long runs are chains of jobs")] if not slurm.requeue else []),
        *([("scratch", discovery.profile.environment.scratch)] if discovery.profile.environment.scratch else []),
    ]


def _strata(store: Store) -> list[str]:
    """Return the class of each image, or the grade of each case."""
    if store.task == "classification":
        return [store.classes[label] for label in store.label.tolist()]
    return [str(facts.get("grade", "grade unknown")) for facts in store.clinical]


def cleaning_tables(cleaning: Cleaning) -> list[Table]:
    """Return a table of removable or removed files by kind, and one of the sizes of runs."""
    by_kind = {label: cleaning.of(kind) for kind, label in LEFTOVERS.items()}
    rows = [
        (label, f"{sum(item.files for item in items):,}", size(sum(item.bytes for item in items)))
        for label, items in {**by_kind, "total": cleaning.leftovers}.items()
        if items
    ]
    title = "removed" if cleaning.removed else "removable"
    table = Table("", (Column(title, "left"), Column("files"), Column("size")), tuple(rows))
    return [*([table] if rows else []), *([_sizes_table(cleaning)] if cleaning.sizes else [])]


def removal_error(cleaning: Cleaning) -> PartialFailure:
    """Return the error for files that could not be removed."""
    path, reason = next(iter(cleaning.failed.items()))
    return PartialFailure(f"{counted(len(cleaning.failed), 'file')} could not be removed. The first, {path}: {reason}")


def _sizes_table(cleaning: Cleaning) -> Table:
    title = "removed" if cleaning.removed else "removable"
    columns = [
        Column("run", "left"),
        Column("state", "left", key="state"),
        Column("files"),
        Column("size"),
        Column(title),
    ]
    shown, rest = cleaning.sizes[:MAX_SIZES], cleaning.sizes[MAX_SIZES:]
    rows = [
        [run.run, run.state, f"{run.files:,}", size(run.bytes), size(run.may_go) if run.may_go else ""] for run in shown
    ]
    others = ["" if isinstance(run.left_alone, State) else run.left_alone or "" for run in shown]
    if any(others):
        columns.append(Column("left alone", "left", keep=40))
        rows = [[*row, why] for row, why in zip(rows, others, strict=True)]
    notes = []
    if rest:
        notes = [f"and {counted(len(rest), 'smaller run')}, {size(sum(run.bytes for run in rest))}; --json lists all"]
    if counts := Counter(run.left_alone for run in cleaning.sizes if isinstance(run.left_alone, State)):
        notes.append(f"Left alone: {', '.join(f'{count:,} {state}' for state, count in counts.items())}.")
    return Table("", tuple(columns), tuple(tuple(row) for row in rows), tuple(notes))
