"""Compare losses and gradients with those of the plain network on the CPU in float64, in each number format."""

from __future__ import annotations

import math

import torch
from benchmark_networks import make_plain
from benchmark_workers import cores
from torch import Tensor, nn

from gpu_report.job import Job, Tell
from hpc_tumor.models import MODELS, build_model
from hpc_tumor.settings import resolve
from hpc_tumor.training.losses import build_loss
from hpc_tumor.training.recipe import Precision, choose_precision, prepare_backend
from hpc_tumor.training.scoring.evaluate import Forward

# The relative errors allowed, of the mean loss and of all gradients as one vector, are some times those of the plain
# network on the CPU in the same number format: the gradients of some untrained networks are ill-conditioned. Gradients
# that are zero or unrelated have errors of 1 and more, so the limit stays below.
TIMES, LARGEST = 4.0, 0.9
LEAST = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}  # rounding of the format, whatever the control says
SAMPLES, SIDE = 2, 64  # of slices; images have their published side
QUICK_SIDE = 32
_CONTROL = {"float16": "bfloat16"}  # which has larger errors; CPUs take minutes for float16
_SCALE = 1024.0  # of the loss in float16, so that small gradients are not lost

Gradients = list[Tensor]


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Compare one network in every number format of the device; the plain network on the CPU is the control."""
    name, cpu, device = item["network"], torch.device("cpu"), torch.device(job.device)
    torch.set_num_threads(cores())
    network, (images, targets) = tested_network(name, job), _samples(name, job)
    plain = make_plain(tested_network(name, job))
    plain.load_state_dict(network.state_dict())
    exact = _backward(plain.double(), images.double(), targets, name, Precision("float32", "", "cpu"))
    plain.float().load_state_dict(network.state_dict())
    tell(reference_loss=exact[0])
    controls: dict[str, dict[str, float]] = {}
    for kind in job.formats:
        if (slow := _CONTROL.get(kind, kind)) not in controls:
            prepare_backend(cpu, slow)
            controls[slow] = _errors(_backward(plain, images, targets, name, Precision(slow, "", "cpu")), exact)
        control = controls[slow]
        prepare_backend(device, kind)
        network.to(device).to(memory_format=torch.channels_last)
        there = images.to(device), targets.to(device)
        errors = _errors(_backward(network, *there, name, choose_precision(kind, device)), exact)
        tell(errors={kind: errors}, control={kind: control})
        for what, error in errors.items():
            limit = limit_of(kind, control[what])
            tell.check(f"{kind}: {what}", error <= limit, value=error, limit=limit)


def limit_of(kind: str, control: float) -> float:
    """Return the relative error allowed in a number format, given that of the control."""
    return min(LARGEST, max(LEAST[kind], TIMES * control))


def tested_network(name: str, job: Job) -> nn.Module:
    """Return the untrained network in training mode, without dropout: devices draw different numbers."""
    torch.manual_seed(0)
    small = {"filters": 4} if job.quick and MODELS[name].task == "segmentation" else {}
    return without_dropout(build_model(name, image_size=_side(name, job), **small)).train()


def without_dropout(network: nn.Module) -> nn.Module:
    """Switch off dropout in a network, in place; a ViT's attention has the rate of its layer's dropout."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def _side(name: str, job: Job) -> int:
    if MODELS[name].task == "classification":
        return MODELS[name].image_size
    return QUICK_SIDE if job.quick else SIDE


def _samples(name: str, job: Job) -> tuple[Tensor, Tensor]:
    """Return images as smooth as scans, and labels or classes."""
    draw, side = torch.Generator().manual_seed(1), _side(name, job)
    channels = 4 if MODELS[name].task == "segmentation" else 1
    coarse = torch.randn(SAMPLES, channels, side // 8, side // 8, generator=draw)
    images = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    if channels == 1:
        return images.sigmoid(), torch.arange(SAMPLES)
    return images, images[:, 0].mul(2).round().clamp(0, 3).to(torch.uint8)


def _backward(
    network: nn.Module, images: Tensor, targets: Tensor, name: str, precision: Precision
) -> tuple[float, Gradients]:
    """Return the mean of the published loss, and the gradients in float64 on the CPU."""
    spec = MODELS[name]
    settings = resolve({"model": {"name": name}, "data": {"store": "none"}}, {}, "gpu_report", lambda setting: "--set")
    forward = Forward(precision, spec.in_channels, torch.channels_last, spec.task)
    network.zero_grad(set_to_none=True)
    scale = _SCALE if precision.name == "float16" else 1.0
    loss = build_loss(spec.task, settings.loss, weights=None, focal_gamma=0.0)(forward(network, images), targets).mean()
    (loss * scale).backward()
    gradients = [weights.grad.double().cpu() / scale for weights in network.parameters() if weights.grad is not None]
    return loss.item(), gradients


def _errors(found: tuple[float, Gradients], exact: tuple[float, Gradients]) -> dict[str, float]:
    """Return the relative errors of the loss and of the gradients."""
    pairs = list(zip(found[1], exact[1], strict=True))
    difference = sum(float((own - right).square().sum()) for own, right in pairs)
    size = sum(float(right.square().sum()) for _, right in pairs)
    return {"loss": abs(found[0] - exact[0]) / exact[0], "gradients": math.sqrt(difference / size)}
