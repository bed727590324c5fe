"""Networks for the training benchmarks: as the course project would write them, and as they are trained here.

Plain means torch's own layers, losses and optimizer, and images with three real channels, in float32 and torch's
default memory layout if nothing else is asked for. Ours is the result of `build_state` for the same settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.models import MODELS, build_model
from hpc_tumor.models.attention_unet import AttentionGate, AttentionUNet
from hpc_tumor.models.improved_unet import ImprovedUNet
from hpc_tumor.models.layers.bottleneck import Bottlenecks
from hpc_tumor.models.layers.fast import DepthwiseConv2d, Dropout, FirstConv2d, MishPool
from hpc_tumor.models.layers.fused import Convolutions, Linear
from hpc_tumor.models.unet import UNet
from hpc_tumor.models.vit import HEADS, WIDTH, EncoderLayer
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import merge, resolve
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState, epoch_totals
from hpc_tumor.training.step import train_step
from hpc_tumor.training.watch.guard import check_steps

# Four plain loops: with or without bfloat16 by autocast, in torch's default memory layout or channels-last.
PLAIN_WAYS = {
    f"{name} {layout}": (getattr(torch, name), getattr(torch, f"{layout}_format" if layout == "contiguous" else layout))
    for name in ("float32", "bfloat16")
    for layout in ("contiguous", "channels_last")
}
SIDES = (1024, 2048, 4096)  # of the matrices that a device's peak is measured with
CPU_BATCH = {"classification": 64, "segmentation": 8}  # the published 32 slices take 13 GB in float32
NO_WISHES = (False, False)


class PlainMishPool(nn.Module):
    """Mish on every value, then pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.mish(x), 2)


def upsample(x: Tensor) -> Tensor:
    """Upsample with torch's own layer."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def upsample_add(x: Tensor, skip: Tensor) -> Tensor:
    """Upsample with torch's own layer, and add the skip."""
    return upsample(x) + skip


class PlainUNet(UNet):
    """The U-Net with torch's upsampling."""

    join = staticmethod(lambda x, skip: torch.cat([upsample(x), skip], dim=1))


class PlainImprovedUNet(ImprovedUNet):
    """The improved U-Net with torch's upsampling."""

    join = staticmethod(upsample_add)


class PlainAttentionUNet(AttentionUNet):
    """The attention U-Net with torch's upsampling."""

    join = staticmethod(lambda x, skip, gate: upsample_add(x, gate * skip))


class PlainGate(AttentionGate):
    """The gate with its 1×1 convolution of stride 2."""

    def forward(self, decoder: Tensor, skip: Tensor) -> Tensor:
        weight, bias = self.from_skip.weight, self.from_skip.bias
        joint = F.relu(self.from_decoder(decoder) + F.conv2d(skip, weight, bias, stride=2))
        return upsample(self.to_map(joint).sigmoid())


class PlainEncoderLayer(EncoderLayer):
    """The layer with torch's attention, including dropout of its weights."""

    def forward(self, tokens: Tensor, return_attention: bool = False) -> tuple[Tensor, Tensor | None]:
        joint = self.query_key_value(self.attention_norm(tokens))
        query, key, value = joint.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        tokens = tokens + self.dropout(self.projection(attended.transpose(1, 2).flatten(2)))
        return tokens + self.feed_forward(tokens), None


PLAIN_LAYERS: dict[type, type] = {
    DepthwiseConv2d: nn.Conv2d, FirstConv2d: nn.Conv2d, Dropout: nn.Dropout, MishPool: PlainMishPool,
    AttentionGate: PlainGate, EncoderLayer: PlainEncoderLayer, Convolutions: nn.Sequential, Linear: nn.Linear,
    Bottlenecks: nn.Sequential, UNet: PlainUNet, ImprovedUNet: PlainImprovedUNet, AttentionUNet: PlainAttentionUNet,
}  # fmt: skip


def make_plain(network: nn.Module) -> nn.Module:
    """Replace our layers by torch's in `network`, in place, with the same weights."""
    for module in network.modules():
        module.__class__ = PLAIN_LAYERS.get(type(module), type(module))
    return network


def plain_network(experiment: Experiment) -> nn.Module:
    """Return the plain network of an experiment. SystemExit if its logits differ from ours."""
    network = build_model(experiment.model.name, filters=experiment.model.filters).eval()
    example = torch.rand(2, 1, *(2 * (64 if experiment.task == "segmentation" else 128,)))
    repeated = example.expand(-1, MODELS[experiment.model.name].in_channels, -1, -1)
    ours = network(repeated)  # with gradients: without them, some of our layers are torch's
    plain = make_plain(network)(repeated.contiguous())
    if not torch.allclose(ours, plain, rtol=1e-3, atol=1e-4):
        raise SystemExit(f"{experiment.model.name}: the plain network gives different logits")
    return network.train()


@dataclass
class PlainTraining:
    """The plain network in training, with loss and optimizer."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: nn.Module
    precision: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format

    def step(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step on the result of `plain_tensors`; return the logits and the loss."""
        self.optimizer.zero_grad()
        with torch.autocast(images.device.type, self.precision, enabled=self.precision != torch.float32):
            logits = self.network(images)
            loss = self.loss(logits, targets)
        loss.backward()
        self.optimizer.step()
        return logits.detach(), loss.detach()


def plain_training(experiment: Experiment, device: torch.device, way: str = "float32 contiguous") -> PlainTraining:
    """Build the plain network with torch's default Adam and the published loss, for one of `PLAIN_WAYS`."""
    precision, layout = PLAIN_WAYS[way]
    network, recipe = plain_network(experiment).to(device, memory_format=layout), experiment.recipe
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    loss = nn.BCEWithLogitsLoss() if experiment.task == "segmentation" else nn.CrossEntropyLoss()
    return PlainTraining(network, optimizer, loss, precision, layout)


def plain_tensors(
    batch: Batch, channels: int, layout: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor]:
    """Return the same batch for the plain network: channels repeated, and three float masks instead of labels."""
    targets = batch.targets
    if targets.ndim == 3:
        targets = torch.stack([targets == label for label in (1, 2, 3)], 1).float()
    return batch.images.expand(-1, channels, -1, -1).contiguous(memory_format=layout), targets


def flops_of_sample(experiment: Experiment) -> float:
    """Return the floating-point operations of the plain forward and backward pass on one sample."""
    spec = MODELS[experiment.model.name]
    with torch.device("meta"):
        network = make_plain(build_model(experiment.model.name, filters=experiment.model.filters))
        images = torch.empty(2, spec.in_channels, spec.image_size, spec.image_size)
    # torch's own formula counts the filter gradient of a depthwise convolution as if it were a dense one.
    mapping = {torch.ops.aten.convolution_backward: flop_of_convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() / len(images)


def flop_of_convolution_backward(
    gradient: Any, x: Any, weight: Any, *rest: Any, out_shape: Any = None, **_: Any
) -> int:
    """Count the forward pass once for the input's gradient and once for the filter's."""
    wanted = rest[-1]
    return conv_flop_count(x, weight, gradient) * (wanted[0] + wanted[1])


def product_rate(
    kind: torch.dtype, device: torch.device, repeats: int = 3, sides: tuple[int, ...] = SIDES, cpu_time: bool = False
) -> float:
    """Return the FLOP/s of the fastest product of two large matrices, the peak for a network's step."""
    clock, best = time.process_time if cpu_time else lambda: now(device), 0.0
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        out = torch.mm(a, b)
        calls = max(1, round(4e12 / (2 * side**3))) if devices.is_gpu(device) else max(1, (2048 // side) ** 3)
        for _ in range(repeats):
            began = clock()
            for _ in range(calls):
                torch.mm(a, b, out=out)
            best = max(best, calls * 2 * side**3 / (clock() - began))
    return best


def now(device: torch.device) -> float:
    """Return the time after the device has finished all queued work."""
    devices.synchronize(device)
    return time.perf_counter()


def experiment_of(name: str, store: Path, **settings: Any) -> Experiment:
    """Return an experiment with the published recipe, without augmentation; `settings` take precedence."""
    given = {
        "model": {"name": name},
        "data": {"store": str(store), "keep": "none"},
        "recipe": {"augment": False},
        "hardware": {"compile": "off"},
    }
    experiment: Experiment = resolve(merge(given, settings), {}, "benchmark", lambda setting: "--set")
    return experiment


@dataclass
class OwnTraining:
    """A network in training by this package, on one batch in memory."""

    state: TrainingState
    batch: Batch
    totals: dict[str, Any]

    def step(self) -> None:
        """Take one step as `train_epoch` does."""
        train_step(self.state, self.batch, self.totals, NO_WISHES)
        check_steps(self.state, self.totals)


def own_training(experiment: Experiment, runs: Path, distributed: Distributed) -> OwnTraining:
    """Build a run and read its first batch. `keep_freed_memory` stays active for the whole process."""
    state = build_state(experiment, RunDir.create(runs, experiment), distributed)
    state.network.train()
    return OwnTraining(state, state.parts.first_batch(0), epoch_totals(state))


def seconds_of(step: Callable[[], Any], device: torch.device, seconds: float, cpu_time: bool = False) -> float:
    """Return the mean seconds of a step, by the clock or of the CPU, over about `seconds` of steps, at least one."""
    clock = time.process_time if cpu_time else lambda: now(device)
    began, steps, end = clock(), 0, time.perf_counter() + seconds
    while not steps or time.perf_counter() < end:
        step()
        steps += 1
    return (clock() - began) / steps


def names_of(text: str, among: Iterable[str] = MODELS) -> list[str]:
    """Parse names separated by commas, or `all`. SystemExit if one is unknown."""
    known = list(among)
    names = known if text == "all" else text.split(",")
    if wrong := [name for name in names if name not in known]:
        raise SystemExit(f"{wrong[0]!r} is not known: choose among {', '.join(known)}.")
    return names
