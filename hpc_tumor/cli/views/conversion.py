"""Results of the commands, each as a table, or as one line for a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
    from hpc_tumor.data.raw.sources import SourceReport
    from hpc_tumor.data.splits.splits import Split
    from hpc_tumor.data.store.store import Store

MOST_REFUSED = 20  # cases named one by one
MOST_SIZES = 20  # runs whose size is shown, the largest first
LEFTOVERS: dict[Kind, str] = {
    "checkpoints": "checkpoints of finished runs",
    "temporary": "temporary files of writers that are gone",
    "pickles": "pickles of the jobs of finished runs",
    "code": "code that no unfinished run needs",
    "staging": "unfinished work of conversions that are gone",
    "copies": "copies of stores on this machine's disk",
}
NOUNS = ("link", "Zarr store")  # kinds of unused entries that are counted as nouns; the others are suffixes


def source_lines(report: SourceReport) -> list[str]:
    """Lines on the contents of a folder of raw scans, before anything is converted."""
    lines = [f"{report.listing.source}: {report.dataset}, {counted(len(report.cases), 'case')}, {size(report.bytes)}"]
    parts: dict[str, list[str]] = {}
    for group, count in report.groups.items():
        part, _, name = group.rpartition("/")
        parts.setdefault(part or "edition", []).append(f"{name} {count:,}" if part else f"{name} ({count:,})")
    lines += [f"  {part:<7}  {', '.join(groups)}" for part, groups in parts.items()]
    if report.not_taken:
        kinds = report.not_taken.items()
        lines.append(
            f"not used: {', '.join(counted(n, kind) if kind in NOUNS else f'{n:,} {kind}' for kind, n in kinds)}"
        )
    return lines


def summary_lines(summary: PrepareSummary) -> list[tuple[str, str]]:
    """Lines on what a conversion did, and on what the store holds."""
    images = summary.dataset == "brain-mri"
    changes = [("converted", summary.converted), ("kept as they were", summary.kept), ("removed", summary.removed)]
    what = ", ".join(f"{count:,} {verb}" for verb, count in changes if count)
    classes = ", ".join(f"{name} {count:,}" for name, count in summary.classes.items())
    lines = [
        ("store", f"{summary.store}: {size(summary.bytes_after)}, from {size(summary.bytes_before)}"),
        ("images" if images else "cases", f"{summary.cases:,} ({what})"),
    ]
    if images:
        lines.append(("classes", classes))
        lines.append(("published parts", ", ".join(f"{part} {count:,}" for part, count in summary.parts.items())))
        twins = f"; {counted(summary.leaking, 'test image')} with a twin or near copy among the training images"
        near = f"{summary.near_duplicates:,} near cop{'y' if summary.near_duplicates == 1 else 'ies'}"
        repeats = f"{counted(summary.duplicates, 'image')} identical to an earlier one, and {near}"
        lines.append(("duplicates", f"{repeats}{twins if summary.leaking else ''}"))
    else:
        lines.append(("slices", f"{summary.slices:,}"))
        lines.append(("labels", f"{classes} (slices that show them)"))
        if any(summary.clinical.values()):
            lines.append(("clinical", _clinical(summary.clinical)))
    lines.append(("fingerprint", summary.fingerprint[:12]))
    lines.append(("time", duration(summary.seconds)))
    return lines


def _clinical(known: Mapping[str, int]) -> str:
    alive = f" ({known['alive']:,} alive)" if known["alive"] else ""
    parts = [
        f"{name} of {known[name]:,}{alive if name == 'survival' else ''}"
        for name in ("grade", "survival", "age", "resection")
        if known[name]
    ]
    return ", ".join(parts)


def refused_cases(summary: PrepareSummary) -> DataError:
    """The error for cases that could not be converted, after each of them was named."""
    for _, reason in summary.failed[:MOST_REFUSED]:
        out.warning(reason)
    if len(summary.failed) > MOST_REFUSED:
        out.warning(f"and {len(summary.failed) - MOST_REFUSED} more; --json names all of them")
    still = len(summary.still_stored)
    total = counted(summary.cases + len(summary.failed) - still, "case")
    stay = f" ({still:,} of them stay{'s' * (still == 1)} in the store as converted before)" if still else ""
    return DataError(
        f"{len(summary.failed):,} of {total} refused, see above{stay}; the others are in the store."
        " Repair the refused ones, or take them out of the source, and the same command takes in what changed."
    )


def split_summary(split: Split, store: Store) -> dict[str, Any]:
    """The parts of a split: how many of what, in all and by class or grade."""
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
    about = {"store": store.path, "fingerprint": store.fingerprint, "split": split.kind, "seed": split.seed}
    return {**about, "fold": split.fold, "leaks": split.leaks, "parts": parts}


def split_table(split: Split, store: Store) -> Table:
    """A row per part; a column per class or grade."""
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
    title = f"{store.path.name} · split {split.kind}{fold} ({'leaks' if split.leaks else 'does not leak'})"
    return Table(title, tuple(columns), tuple(rows), (*shared, *_left_out(split, store)))


def _left_out(split: Split, store: Store) -> tuple[str, ...]:
    """Notes on what a split of images leaves out, and on having nothing to choose the best epoch by."""
    notes = []
    if store.task == "classification" and (rest := len(store) - sum(map(len, (split.train, split.val, split.test)))):
        notes.append(
            f"{counted(rest, 'image')} in no part: copies of others, or training images with one in the test part."
        )
    if not len(split.val):
        notes.append("No validation part: the last epoch counts as the best.")
    return tuple(notes)


def clusters_table(profiles: Sequence[ClusterProfile]) -> Table:
    """The profiles that `--cluster` takes."""
    columns = (
        Column("cluster", "left"), Column("GPUs", keep=80), Column("model", "left", 60), Column("CPUs", keep=40),
        Column("memory, GB", keep=40), Column("longest", keep=50), Column("account", "left", 30),
        Column("description", "left", 5),
    )  # fmt: skip
    rows = []
    for profile in profiles:
        node, limits = profile.node, profile.limits
        longest = "" if profile.name == LOCAL else hours(limits.walltime)
        rows.append((
            profile.name, str(node.gpus or "none"), node.gpu_model or "", str(node.cpus), f"{node.memory_gb:.0f}",
            longest, profile.slurm.account or "", profile.description,
        ))  # fmt: skip
    return Table("", columns, tuple(rows), ("GPUs, CPUs and memory: of one node.",))


def discovery_lines(discovery: Discovery) -> list[tuple[str, str]]:
    """Contents of the profile that was written of a cluster, and its place."""
    slurm, node, limits = discovery.profile.slurm, discovery.profile.node, discovery.profile.limits
    model = f" ({node.gpu_model})" if node.gpu_model else ""
    gpus = f"{counted(node.gpus, 'GPU')}{model}" if node.gpus else "no GPUs"
    jobs = ((limits.nodes, "nodes"), (limits.running_jobs, "running jobs"), (limits.queued_jobs, "queued jobs"))
    most = "".join(f", {number} {what}" for number, what in jobs if number)
    asked = [
        ("account", slurm.account),
        ("QOS", slurm.qos),
        ("GPU type", slurm.gpu_type),
        ("feature", slurm.constraint),
    ]
    return [
        ("written", str(discovery.path)),
        ("partition", slurm.partition or ""),
        ("a node", f"{gpus}, {node.cpus} CPUs, {node.memory_gb:.0f} GB"),
        ("at most", f"{hours(limits.walltime)}{most}"),
        *((name, value) for name, value in asked if value),
        *([("requeue", "not here: a long run is a chain of jobs")] if not slurm.requeue else []),
        *([("scratch", discovery.profile.environment.scratch)] if discovery.profile.environment.scratch else []),
    ]


def _strata(store: Store) -> list[str]:
    """Class of each image, or grade of each case."""
    if store.task == "classification":
        return [store.classes[label] for label in store.label.tolist()]
    return [str(facts.get("grade", "grade unknown")) for facts in store.clinical]


def cleaning_tables(cleaning: Cleaning) -> list[Table]:
    """Files that may be removed, or were, by kind; and the sizes of the runs."""
    by_kind = {words: cleaning.of(kind) for kind, words in LEFTOVERS.items()}
    rows = [
        (words, f"{sum(item.files for item in items):,}", size(sum(item.bytes for item in items)))
        for words, items in {**by_kind, "in all": cleaning.leftovers}.items()
        if items
    ]
    title = "removed" if cleaning.removed else "may go"
    table = Table("", (Column(title, "left"), Column("files"), Column("size")), tuple(rows))
    return [*([table] if rows else []), *([_sizes_table(cleaning)] if cleaning.sizes else [])]


def refuse_what_stays(cleaning: Cleaning) -> PartialFailure:
    """The error for what could not be removed."""
    path, reason = next(iter(cleaning.failed.items()))
    return PartialFailure(
        f"{counted(len(cleaning.failed), 'leftover')} could not be removed. The first, {path}: {reason}"
    )


def _sizes_table(cleaning: Cleaning) -> Table:
    title = "removed" if cleaning.removed else "may go"
    columns = [
        Column("run", "left"),
        Column("state", "left", key="state"),
        Column("files"),
        Column("size"),
        Column(title),
    ]
    shown, rest = cleaning.sizes[:MOST_SIZES], cleaning.sizes[MOST_SIZES:]
    rows = [
        [run.run, run.state, f"{run.files:,}", size(run.bytes), size(run.may_go) if run.may_go else ""] for run in shown
    ]
    others = ["" if isinstance(run.left_alone, State) else run.left_alone or "" for run in shown]
    if any(others):
        columns.append(Column("left alone", "left", keep=40))
        rows = [[*row, why] for row, why in zip(rows, others, strict=True)]
    notes = []
    if rest:
        notes = [f"and {counted(len(rest), 'smaller run')}, {size(sum(run.bytes for run in rest))}; --json has all"]
    if left := Counter(run.left_alone for run in cleaning.sizes if isinstance(run.left_alone, State)):
        notes.append(f"Left alone: {', '.join(f'{count:,} {state}' for state, count in left.items())}.")
    return Table("", tuple(columns), tuple(tuple(row) for row in rows), tuple(notes))
