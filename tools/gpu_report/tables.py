"""Lay out a report as Markdown: state, checks, then a table a part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gpu_report.report import checks, missing
from gpu_report.study import ASSUMED, PIECES, study
from hpc_tumor.models import MODELS

NOTHING = "–"
_LIBRARIES = (("CUDA", "cuda"), ("ROCm", "rocm"), ("cuDNN", "cudnn"), ("NCCL", "nccl"))
Values = dict[str, Any]
_KERNELS_OF = tuple(name for name, spec in MODELS.items() if spec.task == "segmentation" or name == "vit")


def render(values: Values) -> str:
    """Return the report as Markdown."""
    machine = _machine(values)
    lines = [f"# GPU report: {machine.get('name', 'device unknown')}", "", *summary(values), ""]
    if values["device"] == "cpu":
        lines += ["**On the CPU: a trial of the script, not a measurement of a GPU.**", ""]
    if values["quick"]:
        lines += ["**Quick: tiny networks, images and batches. The figures say nothing about speed.**", ""]
    speed = (_steps, _graph, _kernels, _study)
    for section in (_about, _failed, _missing, *speed, _numbers, _feeding, _ranks, _ceilings, _all):
        lines += section(values)
    return "\n".join(lines).rstrip() + "\n"


def summary(values: Values) -> list[str]:
    """Return one or two lines: the state of the report, and how many checks passed."""
    counts = {True: 0, False: 0, None: 0}
    for _, _, check in checks(values):
        counts[check["passed"]] += 1
    lacking = sum(1 for _ in missing(values))
    state = f"{values['state']} after {values['seconds']:.0f} s of {60 * values['minutes']:.0f} s"
    reason = f" ({values['reason']})" if values["reason"] else ""
    return [
        f"{state}{reason}; {lacking} measurements missing.",
        f"Checks: {counts[True]} passed, {counts[False]} failed, {counts[None]} not possible here.",
    ]


def _about(values: Values) -> list[str]:
    machine = _machine(values)
    if not machine:
        return []
    libraries = "".join(f", {name} {machine[key]}" for name, key in _LIBRARIES if machine.get(key))
    rows = [
        ("device", f"{machine.get('name', NOTHING)}, {_number(machine.get('memory_gb'), 1)} GB,"
                   f" capability {machine.get('capability') or NOTHING}, {machine.get('gpus', 0)} visible"),
        ("driver", (machine.get("idle") or {}).get("driver_version", NOTHING)),
        ("torch", f"{machine['torch']}{libraries}"),
        ("host", machine.get("machine", NOTHING)),
        ("idle", _join(machine.get("idle"))),
        ("under load", _join(machine.get("loaded"))),
        ("this package", f"commit {machine.get('commit') or NOTHING}; begun {values['began']}"),
    ]  # fmt: skip
    return _table("", ("", ""), rows)


def _failed(values: Values) -> list[str]:
    rows = [
        (part, item, check["name"], _short(check.get("value")), _short(check.get("limit")), check.get("why") or "")
        for part, item, check in checks(values) if check["passed"] is False
    ]  # fmt: skip
    return _table("Failed checks", ("part", "item", "check", "value", "limit", ""), rows)


def _missing(values: Values) -> list[str]:
    return _table("Missing", ("part", "item", "reason"), list(missing(values)))


def _steps(values: Values) -> list[str]:
    machine, rows = _machine(values), []
    peaks, sheet = machine.get("product_flops", {}), machine.get("datasheet") or {}
    copied = machine.get("copy_bytes", {}).get("device")
    for label, row in _rows(values, "steps", "variants", "formats"):
        if "step_ms" not in row:
            continue
        kind, seconds = label.split()[1], row["step_ms"] / 1e3
        flops = 1e9 * row["gflop"] / seconds if "gflop" in row else None
        moved = 1e9 * row["gbytes"] / seconds if "gbytes" in row else None
        rows.append((
            label, str(row["batch"]), _number(row["step_ms"], 2), _number(row["batch"] / seconds, 0),
            _number(row.get("host_ms"), 2), _number(row.get("busy_ms"), 2), _number(row.get("launches"), 0),
            _number(flops and flops / 1e12, 1), _share(flops, peaks.get(kind)), _share(flops, sheet.get(kind)),
            _number(row.get("gbytes"), 2), _number(moved and moved / 1e12, 2), _share(moved, copied),
            _number(row.get("memory_gb"), 2), _number(row.get("built_seconds"), 1),
            _number(row.get("first_step_seconds"), 1),
        ))  # fmt: skip
    head = ("step of", "batch", "ms", "samples/s", "host ms", "kernels ms", "launches", "TFLOP/s", "of measured peak",
            "of datasheet", "GB moved", "TB/s", "of copying", "memory GB", "build s", "first step s")  # fmt: skip
    note = (
        "GB moved: tensors that the operations read and write, counted; one that runs as several kernels moves more."
        " Peak: product of large matrices in the same format. Copying: a large copy on the device."
    )
    return _table("Training steps, published recipes", head, rows, note)


def _graph(values: Values) -> list[str]:
    rows = []
    for name, row in _rows(values, "graph"):
        times, launches = row.get("ms", {}), row.get("launches", {})
        if {"eager", "graph"} <= times.keys():
            eager, replay = times["eager"], times["graph"]
            rows.append((name, row["format"], str(row["batch"]), _number(eager, 2), _number(replay, 2),
                         _number(eager / replay, 2), _number(launches.get("eager"), 0),
                         _number(launches.get("graph"), 0)))  # fmt: skip
    head = ("network", "format", "batch", "eager ms", "graph ms", "times as fast", "launches, eager", "launches, graph")
    note = "Forward pass, loss and backward pass of one batch, without dropout. Launches: kernels, copies and fills."
    return _table("A CUDA graph against eager", head, rows, note)


def _kernels(values: Values) -> list[str]:
    lines = []
    for label, row in _rows(values, "steps"):
        if label.split()[0] in _KERNELS_OF and row.get("kernels"):
            rows = [
                (f"`{kernel['name'][:110]}`", _number(kernel["calls"], 1), _number(kernel["ms"], 3),
                 _share(kernel["ms"], row.get("busy_ms")))
                for kernel in row["kernels"]
            ]  # fmt: skip
            lines += _table(f"Worst kernels: {label}", ("kernel", "calls a step", "ms a step", "of all kernels"), rows)
    return lines


def _study(values: Values) -> list[str]:
    found = study(values)
    if not found:
        return []
    rows = [
        (name, row["variant"], *(_number(row["seconds"][piece], 1) for piece in PIECES), _number(row["total"] / 60, 1))
        for name, row in found.items()
    ]
    whole = sum(row["total"] for row in found.values()) / 60
    rows.append((f"all {len(found)}", "", *("" for _ in PIECES), _number(whole, 1)))
    note = f"Seconds; the fastest variant measured. {NOTHING}: not measured, not in the sum. Assumed: {ASSUMED}."
    return _table("The published study", ("network", "variant", *PIECES, "minutes"), rows, note)


def _numbers(values: Values) -> list[str]:
    rows = [
        (name, kind, _short(errors["loss"]), _short(errors["gradients"]),
         _short(row["control"][kind]["loss"]), _short(row["control"][kind]["gradients"]))
        for name, row in _rows(values, "numbers") for kind, errors in row.get("errors", {}).items()
    ]  # fmt: skip
    note = "Relative errors against the plain network on the CPU in float64, and of that network in the same format."
    head = ("network", "format", "loss", "gradients", "loss, CPU", "gradients, CPU")
    return _table("Losses and gradients", head, rows, note)


def _feeding(values: Values) -> list[str]:
    rows = [
        (label, _number(row.get("images_per_second"), 0), _number(row.get("first_pass"), 0))
        for label, row in _rows(values, "feeding") if "images_per_second" in row
    ]  # fmt: skip
    return _table("Feeding, to normalised tensors", ("task, kept", "images/s", "in the first pass"), rows)


def _ranks(values: Values) -> list[str]:
    rows = [
        (label, row["backend"], ", ".join(f"{int(size) / 2**20:.0f} MiB: {rate / 1e9:.1f}"
                                          for size, rate in row["all_reduce_bytes"].items()), row.get("note", ""))
        for label, row in _rows(values, "ranks") if "backend" in row
    ]  # fmt: skip
    return _table("Several ranks", ("ranks, on", "backend", "all-reduce, GB/s", ""), rows)


def _ceilings(values: Values) -> list[str]:
    machine = _machine(values)
    sheet = machine.get("datasheet") or {}
    rows = [
        (f"product of matrices, {kind}", f"{rate / 1e12:.2f} TFLOP/s", _share(rate, sheet.get(kind)))
        for kind, rate in machine.get("product_flops", {}).items()
    ]
    rows += [
        (f"copy: {where}", f"{rate / 1e9:.1f} GB/s", _share(rate, sheet.get("memory") if where == "device" else None))
        for where, rate in machine.get("copy_bytes", {}).items()
    ]
    if "launch_us" in machine:
        rows.append(("smallest operation, on the host", f"{machine['launch_us']:.1f} µs", NOTHING))
    return _table("Measured ceilings", ("", "", "of the datasheet"), rows)


def _all(values: Values) -> list[str]:
    rows = [
        (part["title"], part["state"],
         f"{sum(item['state'] == 'done' for item in part['items'].values())} of {len(part['items'])}",
         _number(sum(item.get("seconds", 0) for item in part["items"].values()), 1))
        for part in values["parts"].values()
    ]  # fmt: skip
    return _table("Parts", ("part", "state", "measured", "seconds"), rows)


def _machine(values: Values) -> Values:
    found: Values = values["parts"].get("machine", {"items": {}})["items"].get("device", {})
    return found if "torch" in found else {}


def _rows(values: Values, *parts: str) -> Iterable[tuple[str, Values]]:
    for part in parts:
        yield from values["parts"].get(part, {"items": {}})["items"].items()


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> list[str]:
    """Return the lines of a table, and nothing if it has no rows."""
    if not rows:
        return []
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"## {title}", ""] if title else []
    lines += [f"| {' | '.join(line)} |" for line in (list(head), ["---"] * len(head), *cells)]
    return [*lines, "", *([note, ""] if note else [])]


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def _share(value: float | None, of: float | None) -> str:
    return NOTHING if value is None or not of else f"{value / of:.0%}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return f"{value:.2g}" if isinstance(value, float) else NOTHING if value is None else str(value)


def _join(facts: dict[str, str] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items()) if facts else NOTHING
