"""Choice of number format, memory layout and threads: measured once, alike on all ranks, kept by a resumed run."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import new_run, spawn, train_here

from hpc_tumor.config import HardwareSettings
from hpc_tumor.models import MODELS, Kernels
from hpc_tumor.records import Event
from hpc_tumor.system import cpu, measurements
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.recipe import Precision
from hpc_tumor.training.tuning import cpu_speed, formats
from hpc_tumor.training.tuning.cpu_speed import Variant, seconds_by_variant
from hpc_tumor.training.tuning.formats import Formats, choose_formats, choose_threads


def measured(monkeypatch: pytest.MonkeyPatch, seconds: dict[Variant, float]) -> list[Kernels]:
    """Let this CPU take so long in each variant, and compute in all their formats."""
    asked: list[Kernels] = []

    def measure(kernels: Kernels, supported: Iterable[str]) -> tuple[dict[Variant, float], str]:
        asked.append(kernels)
        return {variant: value for variant, value in seconds.items() if variant[0] in supported}, "measured now"

    monkeypatch.setattr(formats, "seconds_by_variant", measure)
    monkeypatch.setattr(formats, "supported_formats", lambda device: {variant[0] for variant in seconds})
    return asked


def choose(before: Event | None = None, **settings: Any) -> Formats:
    return choose_formats(HardwareSettings(**settings), "convolutions", Distributed(), before)


def times(float32: float, bfloat16: float, contiguous: float = 2.0) -> dict[Variant, float]:
    """Return seconds; contiguous is so many times as slow as channels-last."""
    return {
        ("float32", True): float32, ("float32", False): float32 * contiguous,
        ("bfloat16", True): bfloat16, ("bfloat16", False): bfloat16 * contiguous,
    }  # fmt: skip


def test_bfloat16_is_chosen_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, times(0.51, 1.0))
    assert choose().describe() == (
        "precision float32, bfloat16 is 0.51 × as fast on this CPU, measured now;"
        " memory layout channels-last, 2.00 × as fast as contiguous, measured now"
    )
    measured(monkeypatch, times(2.0, 1.0))
    assert choose().describe().startswith("precision bfloat16, 2.00 × as fast as float32 on this CPU, measured now;")
    measured(monkeypatch, times(1.02, 1.0))
    assert choose().precision.name == "float32", "a gain as small as noise"


def test_the_faster_layout_is_chosen_in_the_format_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {**times(1.0, 3.0), ("float32", False): 0.5}
    measured(monkeypatch, seconds)
    assert not choose().channels_last
    assert choose(precision="bfloat16").channels_last
    # With the layout fixed, formats are compared in this layout.
    measured(monkeypatch, {**times(1.0, 0.8), ("bfloat16", False): 3.0})
    assert choose(channels_last=False).precision.name == "float32"
    assert choose(channels_last=True).precision.name == "bfloat16"


def test_settings_leave_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch, times(2.0, 1.0))
    fixed = choose(precision="float32", channels_last=True)
    assert (fixed.precision.reason, fixed.channels_last) == ("as requested", True)
    deterministic = choose(deterministic=True)
    assert (deterministic.precision.name, deterministic.channels_last) == ("float32", True)
    assert "deterministic" in deterministic.precision.reason
    assert choose(Event(precision="bfloat16", channels_last=False)).precision.name == "bfloat16"
    assert not choose(Event(precision="bfloat16", channels_last=False)).channels_last
    assert asked == []
    choose(Event(precision="bfloat16"))  # of an earlier version, which did not record the layout
    assert asked == ["convolutions"]


def test_a_cpu_without_bfloat16_measures_only_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, {("float32", True): 1.0, ("float32", False): 2.0})
    chosen = choose()
    assert (chosen.precision.name, chosen.channels_last) == ("float32", True)
    assert choose(Event(precision="bfloat16")).precision.name == "float32"


@pytest.mark.parametrize("kernels", sorted({spec.kernels for spec in MODELS.values()}))
def test_a_measurement_is_kept_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Kernels
) -> None:
    monkeypatch.setenv("HPC_TUMOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cpu_speed, "SECONDS", 0.0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    seconds, how = seconds_by_variant(kernels, {"float32"})
    assert how == "measured now"
    assert all(value > 0 for value in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert seconds_by_variant(kernels, {"float32"}) == (seconds, "measured before")
    # A CPU of another kind, another torch or another limit of instructions is measured anew.
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert seconds_by_variant(kernels, {"float32"})[1] == "measured now"


def test_measuring_takes_the_least_of_interleaved_rounds() -> None:
    clock = iter([0.0, *(float(value) for value in range(1000))])
    order: list[str] = []
    passes: dict[str, Callable[[], None]] = {name: lambda name=name: order.append(name) for name in "ab"}
    least = cpu_speed.least_seconds(passes, lambda: next(clock))
    assert order[:6] == ["a", "b", "a", "b", "a", "b"]
    assert least == {"a": 1.0, "b": 1.0}


def test_an_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HPC_TUMOR_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(cpu_speed, "SECONDS", 0.0)
    assert seconds_by_variant("bottlenecks", {"float32"})[1] == "measured now"
    assert seconds_by_variant("bottlenecks", {"float32"})[1] == "measured now"


@pytest.mark.parametrize("text", ["", "[]", '{"measured": {"float32 channels-last": 0}}', '{"measured": {"a": "b"}}'])
def test_a_damaged_measurement_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HPC_TUMOR_CACHE_DIR", str(tmp_path))
    measurements.write("kind", {"a": 1}, {"x": 1.5})
    assert measurements.read("kind", {"a": 1}) == {"x": 1.5}
    (path,) = (tmp_path / "kind").iterdir()
    path.write_text(text)
    assert measurements.read("kind", {"a": 1}) is None


def _other_answers(distributed: Distributed, folder: Path) -> None:
    """Choose on two ranks of which only rank 0 finds bfloat16 faster, then on two of which one lacks it."""
    patch = pytest.MonkeyPatch()
    measured(patch, times(2.0, 1.0) if distributed.is_main else times(1.0, 2.0))
    first = choose_formats(HardwareSettings(), "convolutions", distributed)
    if not distributed.is_main:
        patch.setattr(formats, "supported_formats", lambda device: {"float32"})
    second = choose_formats(HardwareSettings(), "convolutions", distributed)
    (folder / str(distributed.rank)).write_text(f"{first.describe()}\n{second.precision.name}")
    patch.undo()


@pytest.mark.slow
def test_all_ranks_take_the_choice_of_the_first_among_what_all_support(tmp_path: Path) -> None:
    spawn(_other_answers, 2, tmp_path)
    texts = [(tmp_path / rank).read_text() for rank in "01"]
    assert texts[0] == texts[1]
    assert texts[0].startswith("precision bfloat16, 2.00 × as fast")
    assert texts[0].endswith("\nfloat32")


def with_two_threads_a_core(monkeypatch: pytest.MonkeyPatch, folder: Path, cpus: int) -> None:
    for number in range(cpus):
        (folder / f"cpu{number}" / "topology").mkdir(parents=True)
        first = number % (cpus // 2)
        (folder / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(f"{first},{first + cpus // 2}\n")
    monkeypatch.setattr(cpu, "TOPOLOGY", folder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))


@pytest.mark.parametrize(("seconds", "chosen"), [({8: 2.0, 4: 1.0}, 4), ({8: 1.0, 4: 1.01}, 8)])
def test_one_thread_a_core_where_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], chosen: int
) -> None:
    with_two_threads_a_core(monkeypatch, tmp_path / "topology", 8)
    assert cpu.cores_of_process() == (4, 8)
    monkeypatch.setenv("HPC_TUMOR_CACHE_DIR", str(tmp_path / "cache"))
    rounds = []

    def least(passes: dict[str, Callable[[], None]], clock: Callable[[], float]) -> dict[str, float]:
        rounds.append(list(passes))
        return {name: seconds[run.args[0]] for name, run in passes.items()}  # type: ignore[attr-defined]

    monkeypatch.setattr(cpu_speed, "least_seconds", least)
    before = torch.get_num_threads()
    in_float32 = Formats(Precision("float32", "", "cpu"), True)
    try:
        for _ in range(2):
            torch.set_num_threads(8)
            reason = choose_threads(HardwareSettings(), "bottlenecks", Distributed(), in_float32)
            assert torch.get_num_threads() == chosen
            assert bool(reason) == (chosen == 4)
        assert len(rounds) == 1
        for settings, event in (({"threads": 8}, None), ({"deterministic": True}, None), ({}, Event(threads=8))):
            torch.set_num_threads(8)
            hardware = HardwareSettings(**settings)
            assert choose_threads(hardware, "bottlenecks", Distributed(), in_float32, event) == ""
            assert torch.get_num_threads() == 8
        choose_threads(HardwareSettings(), "bottlenecks", Distributed(), in_float32, Event(threads=4))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_run_records_its_choice_and_goes_on_with_it(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hardware = {"precision": "auto", "deterministic": False}
    run = new_run(tmp_path, slice_store, "unet", hardware=hardware)
    train_here(run, stop_at=1)
    (started,) = run.read_events("started")
    assert (started["precision"], started["channels_last"], started["threads"]) == ("float32", True, 1)
    assert "measured before" in capfd.readouterr().err, "tests find their measurement in the cache"
    contents = torch.load(run.last_checkpoint, weights_only=True)
    assert contents["identity"]["precision"] == "float32"
    measured(monkeypatch, {**times(2.0, 1.0), ("float32", False): 0.1, ("bfloat16", False): 0.1})
    assert train_here(run) == "finished"
    (resumed,) = run.read_events("resumed")
    assert (resumed["precision"], resumed["channels_last"]) == ("float32", True)
