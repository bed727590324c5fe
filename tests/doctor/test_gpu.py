"""GPUs against builds of torch: what runs on what, as plain facts; and the facts of a made-up nvidia-smi."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpc_tumor.cluster.describe.profiles import list_profiles
from hpc_tumor.doctor import examine
from hpc_tumor.doctor.finding import Finding
from hpc_tumor.doctor.gpu import check_gpus, check_model, minimum_driver, precision_on
from hpc_tumor.doctor.probe import Gpu, Probe, TorchFacts, read_nvidia_smi
from hpc_tumor.system.torch_builds import TorchBuild, capability_of

# The support matrix of PyTorch 2.11: of its builds for CUDA 12.6, 12.8 and 13.0.
CUDA_126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CUDA_130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
FOR_13, FOR_126 = TorchBuild("2.14.1+cu130", cuda="13.0"), TorchBuild("2.11.0+cu126", cuda="12.6")
NEW = TorchFacts(FOR_13, archs=CUDA_130, nccl="2.30.7", precision=("bfloat16", "the best"))
OLD = TorchFacts(FOR_126, archs=CUDA_126, nccl="2.27.5", precision=("float16", "the best"))
V100, A100 = Gpu("Tesla V100-PCIE-32GB", (7, 0), 32.0), Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 40.0)


def machine(torch: TorchFacts | None, *gpus: Gpu, driver: str | None = "580.65.06") -> Probe:
    """A machine with these GPUs, all of which torch sees."""
    facts = replace(torch, gpus=gpus) if torch else None
    return Probe("node", "3.11.7", "/env/bin/python", {}, torch=facts, gpus=gpus or None, driver=driver)


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_v100_and_a_build_for_cuda_13() -> None:
    """Said before a job is submitted, from the profile's text alone."""
    (found,) = check_model(NEW, "V100 PCIe 32 GB", "orfeo-gpu")
    assert found.level == "error"
    assert "torch 2.14.1+cu130 has no code for sm_70, only for sm_75 to sm_120" in found.text
    assert "CUDA 12.6 (a build named +cu126)" in found.way_out


def test_v100_and_a_build_for_cuda_12_6() -> None:
    (found,) = check_model(OLD, "V100 PCIe 32 GB", "orfeo-gpu")
    assert found.level == "ok"
    assert "float16 (no bfloat16)" in found.text


def test_a_gpu_that_is_newer_than_the_build() -> None:
    (found,) = check_model(replace(OLD, archs=CUDA_126), "B200", "new-cluster")
    assert found.level == "error"
    assert "CUDA 13.0 (a build named +cu130)" in found.way_out


def test_a_build_without_cuda_is_no_use_on_a_cluster_with_gpus() -> None:
    (found,) = check_model(TorchFacts(TorchBuild("2.14.1+cpu")), "A100 SXM 40 GB", "leonardo-booster")
    assert found.level == "error"
    assert "built for CPUs" in found.text


def test_a_build_for_amd_does_not_support_a_gpu_of_nvidia() -> None:
    (found,) = check_model(TorchFacts(TorchBuild("2.14.1+rocm7.2", rocm="7.2")), "A100 SXM 40 GB", "leonardo-booster")
    assert found.level == "error"
    assert "is built for ROCm 7.2: it cannot use A100 SXM 40 GB of leonardo-booster" in found.text


def test_a_model_that_is_not_known_is_not_called_fit() -> None:
    (found,) = check_model(NEW, "Foo 3000", "mine")
    assert found.level == "warning"
    assert "--submit" in found.way_out
    assert check_model(NEW, "Foo 3000", "mine", tried=True) == []


def test_the_gpus_of_all_shipped_profiles_are_known() -> None:
    profiles, _ = list_profiles()
    named = [p.node.gpu_model for p in profiles if p.node.gpu_model and "made up" not in p.node.gpu_model]
    assert len(named) > 5
    assert all(capability_of(model) for model in named)


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (12, 0)])
def test_precision_is_what_training_chooses(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    import torch

    from hpc_tumor.training.recipe import choose_precision

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")).name == precision_on(capability)


def test_gpus_that_fit_say_so_in_two_lines() -> None:
    found = check_gpus(machine(NEW, A100, A100))
    assert levels(found) == ["ok", "ok"]
    assert found[0].text == "2 × NVIDIA A100-SXM4-40GB: torch supports sm_80"
    assert "bfloat16" in found[1].text


def test_v100_here() -> None:
    found = check_gpus(machine(NEW, V100))
    assert levels(found) == ["error"]
    assert "sm_70" in found[0].text


@pytest.mark.parametrize(("driver", "fits"), [("550.54.15", False), ("580.65.06", True), ("595.10", True)])
def test_drivers_that_are_too_old(driver: str, fits: bool) -> None:
    found = check_gpus(machine(NEW, A100, driver=driver))
    assert ("error" not in levels(found)) is fits
    if not fits:
        assert "needs 580" in found[0].text
        assert "CUDA 12" in found[0].way_out


def test_cuda_that_is_not_in_the_table_is_not_judged() -> None:
    assert minimum_driver("12.6") == 525
    assert minimum_driver("14.0") is None


def test_fewer_visible_than_there_are() -> None:
    seen = replace(machine(NEW, A100), gpus=(A100,) * 4)
    assert levels(check_gpus(seen)) == ["warning", "ok", "ok"]
    found = check_gpus(seen, visible="2")
    assert levels(found) == ["ok", "ok"]
    assert "of 4 (CUDA_VISIBLE_DEVICES=2)" in found[0].text
    assert check_gpus(seen, visible="-1")[0].text.startswith("4 × NVIDIA A100-SXM4-40GB: hidden")


def test_why_torch_cannot_use_them_is_said() -> None:
    silent = replace(machine(replace(NEW, refusal="CUDA driver initialization failed"), A100), driver="580.10")
    silent = replace(silent, torch=replace(silent.torch or NEW, gpus=()))
    (found,) = check_gpus(silent)
    assert found.level == "error"
    assert "CUDA driver initialization failed" in found.text


def test_no_compiler() -> None:
    found = check_gpus(machine(replace(NEW, not_compiling="a C compiler (gcc)"), A100))
    assert levels(found) == ["ok", "ok", "warning"]
    assert "since a C compiler (gcc) is missing" in found[-1].text


def test_no_nccl() -> None:
    found = check_gpus(machine(replace(NEW, nccl=None), A100))
    assert levels(found)[-1] == "error"
    assert "NCCL" in found[-1].text


def test_what_this_machine_and_the_cluster_lack_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "probe_here", lambda: machine(replace(NEW, nccl=None), A100))
    gpus = next(section for section in examine.examine(cluster="leonardo-booster") if section.key == "gpu")
    assert sum("NCCL" in finding.text for finding in gpus.findings) == 1


def testread_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also an old one, which does not know how to tell the capability."""
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    command.write_text("#!/bin/sh\nprintf 'NVIDIA H100 80GB HBM3, 81559, 570.86.15, 9.0\\n'\n")
    command.chmod(0o755)
    gpus, driver = read_nvidia_smi()
    assert (gpus, driver) == ((Gpu("NVIDIA H100 80GB HBM3", (9, 0), 81559 / 1024),), "570.86.15")
    command.write_text(
        '#!/bin/sh\ncase "$*" in *compute_cap*) echo \'Field "compute_cap" is not a valid field\'; exit 2;; esac\n'
        "printf 'Tesla V100-PCIE-32GB, 32510, 450.80.02\\n'\n"
    )
    assert read_nvidia_smi()[0] == (Gpu("Tesla V100-PCIE-32GB", None, 32510 / 1024),)
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert read_nvidia_smi() == (None, None)


def test_without_torch_gpus_are_not_checked() -> None:
    assert levels(check_gpus(machine(None, A100))) == ["warning"]
    assert check_model(None, "A100", "mine") == []


def test_a_build_for_cpus_leaves_gpus_idle() -> None:
    (found,) = check_gpus(machine(replace(NEW, build=TorchBuild("2.14.1+cpu"), archs=()), A100))
    assert (found.level, "is built for CPUs and cannot use it" in found.text) == ("error", True)


def test_no_gpu_is_no_fault() -> None:
    assert levels(check_gpus(machine(NEW))) == ["ok"]
    assert levels(check_gpus(machine(NEW), visible="0")) == ["warning"]


def test_what_torch_itself_says_of_its_gpus_counts() -> None:
    """Of AMD's GPUs only it knows the architecture."""
    gpu = Gpu("AMD Instinct MI50", missing_code=("AMD Instinct MI50 (gfx906): no code for it", "install another torch"))
    rocm = TorchFacts(TorchBuild("2.9.0+rocm6.4", rocm="6.4"), archs=("gfx90a", "gfx942"), nccl="2.22.3")
    (found,) = check_gpus(replace(machine(rocm, gpu), gpus=None, driver=None))
    assert (found.level, found.text, found.way_out) == ("error", *(gpu.missing_code or ()))
    fitting = replace(gpu, name="AMD Instinct MI250X", missing_code=None)
    assert levels(check_gpus(replace(machine(rocm, fitting), gpus=None, driver=None))) == ["ok", "ok"]
