"""The seven networks: published sizes, shapes, gradients, memory layouts, refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from hpc_tumor.errors import UsageError
from hpc_tumor.models import MODELS, build_model, count_parameters

COUNTS = [
    ("cnn", {}, 3_001_156),
    ("alexnet", {}, 4_589_316),
    ("vgg16", {}, 65_070_916),
    ("vit", {}, 21_458_436),
    ("unet", {}, 5_496_451),
    ("unet", {"filters": 16}, 1_375_043),
    ("improved-unet", {}, 3_082_739),
    ("improved-unet", {"filters": 16}, 799_075),
    ("attention-unet", {}, 3_258_263),
    ("attention-unet", {"filters": 16}, 843_319),
]
CPU = Path("/proc/cpuinfo")  # torch 2.6 does not tell
HAS_BFLOAT16 = CPU.exists() and "avx512_bf16" in CPU.read_text()
UNETS = ["unet", "improved-unet", "attention-unet"]
# Small enough to be quick, large enough that no network pools its input away.
SMALL = {"cnn": 80, "alexnet": 80, "vgg16": 32, "vit": 32, **dict.fromkeys(UNETS, 48)}


def small_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network at a small size, and a batch of two images for it."""
    torch.manual_seed(0)
    options = {"filters": 4} if name in UNETS else {}
    model = build_model(name, image_size=SMALL[name], **options)
    return model, torch.rand(2, MODELS[name].in_channels, SMALL[name], SMALL[name])


def biases_before_batch_norm(model: nn.Module) -> set[str]:
    """Names of the biases that batch norm subtracts again: their gradient is rounding noise around zero."""
    layers = list(model.named_modules())
    return {f"{name}.bias" for (name, _), (_, following) in pairwise(layers) if isinstance(following, nn.BatchNorm2d)}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [-1, 0, 15, 16, 17, 31, 32, 33, 40, 48, 68, 69, 70, 100, 128])
def test_sizes_are_refused_without_building_in_the_same_words(name: str, size: int) -> None:
    def refusal(check: Callable[[], object]) -> str:
        try:
            check()
        except UsageError as error:
            return str(error)
        return ""

    with torch.device("meta"):
        built = refusal(lambda: build_model(name, image_size=size))
    assert refusal(lambda: MODELS[name].check_image_size(size)) == built


@pytest.mark.parametrize(("name", "options", "parameters"), COUNTS)
def test_parameter_counts_are_the_published_ones(name: str, options: dict[str, int], parameters: int) -> None:
    with torch.device("meta"):
        assert count_parameters(build_model(name, **options)) == parameters


def test_count_leaves_out_frozen_parameters() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 6


@pytest.mark.parametrize("name", MODELS)
def test_published_input_gives_published_output(name: str) -> None:
    spec = MODELS[name]
    model = spec.build(filters=4) if name in UNETS else spec.build()
    with torch.inference_mode():
        logits = model.eval()(torch.rand(1, spec.in_channels, spec.image_size, spec.image_size))
    assert logits.shape == ((1, 3, 240, 240) if spec.task == "segmentation" else (1, 4))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model, x = small_model(name)
    # Random weights on the logits: batch norm could cancel the gradient of a plain sum.
    logits = model.train()(x)
    (logits * torch.randn_like(logits)).sum().backward()
    idle = biases_before_batch_norm(model)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 1e-8 or key in idle, key


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_changes_nothing(name: str) -> None:
    model, x = small_model(name)
    model.eval()
    with torch.inference_mode():
        expected = model(x)
        model.to(memory_format=torch.channels_last)
        found = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_deterministic_and_independent_of_the_batch(name: str) -> None:
    model, x = small_model(name)
    model.eval()
    with torch.inference_mode():
        both = model(x)
        assert torch.equal(model(x), both)
        torch.testing.assert_close(model(x[:1]), both[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast_stays_near_float32(name: str) -> None:
    model, x = small_model(name)
    model.eval()
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", ["vgg16", "alexnet", "unet"])
def test_images_reach_the_logits_of_fresh_plain_networks(name: str) -> None:
    model, x = small_model(name)
    with torch.inference_mode():
        spread = model.eval()(x).std(0).mean()
    # With torch's default weights it is 6e-5 in alexnet and 7e-8 in vgg16.
    assert spread > 0.01


@pytest.mark.parametrize("name", UNETS)
def test_unets_take_other_sizes_than_built_for(name: str) -> None:
    model, _ = small_model(name)
    with torch.inference_mode():
        assert model.eval()(torch.rand(1, 4, 32, 80)).shape == (1, 3, 32, 80)


def test_other_classes_labels_and_channels() -> None:
    with torch.inference_mode():
        assert build_model("cnn", classes=2, in_channels=1).eval()(torch.rand(1, 1, 128, 128)).shape == (1, 2)
        unet = build_model("unet", labels=1, in_channels=2, filters=1).eval()
        assert unet(torch.rand(1, 2, 32, 32)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(("name", "smallest"), [("cnn", 69), ("alexnet", 69), ("vgg16", 32), ("vit", 16)])
def test_smallest_image(name: str, smallest: int) -> None:
    with torch.inference_mode():
        assert build_model(name, image_size=smallest).eval()(torch.rand(1, 3, smallest, smallest)).shape == (1, 4)
    with pytest.raises(UsageError, match=rf"image_size = {smallest - 1} .*{name}.*{smallest}"):
        build_model(name, image_size=smallest - 1)


@pytest.mark.parametrize("name", UNETS)
def test_smallest_unet_image_trains_in_a_batch_of_one(name: str) -> None:
    model = build_model(name, filters=2, image_size=32)
    model.train()(torch.rand(1, 4, 32, 32)).sum().backward()
    with pytest.raises(UsageError, match=r"image_size = 16 .* choose 32\."):
        build_model(name, image_size=16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"image_size": 155}, r"image_size = 155 .*unet.*multiple of 16.*choose 144 or 160"),
        ("vit", {"image_size": 100}, r"image_size = 100 .*vit.*multiple of 16.*choose 96 or 112"),
        ("improved-unet", {"filters": 0}, r"filters = 0 .*positive integer"),
        ("attention-unet", {"labels": -1}, r"labels = -1 .*positive integer"),
        ("cnn", {"classes": 0}, r"classes = 0 .*positive integer"),
        ("vgg16", {"in_channels": True}, r"in_channels = True .*positive integer"),
        ("vit", {"image_size": 128.0}, r"image_size = 128\.0 .*positive integer"),
        ("unet", {"filter": 16}, r"unknown option of model unet 'filter'.*mean 'filters'.*Known: filters, image_size"),
        ("cnn", {"filters": 16}, r"unknown option of model cnn 'filters'.*Known: classes, image_size, in_channels"),
        ("unett", {}, r"unknown model 'unett'.*mean 'unet'.*Known: alexnet, attention-unet, cnn"),
    ],
)
def test_refusals_name_value_and_way_out(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(name, **options)


def test_none_counts_as_not_given() -> None:
    with torch.device("meta"):
        assert count_parameters(build_model("cnn", filters=None, image_size=None)) == 3_001_156


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(4, 48, 48), (1, 5, 48, 48), (1, 4, 48, 50)])
def test_wrong_input_is_refused_by_its_shape(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model, _ = small_model(name)
        with pytest.raises(ValueError, match=f"{name} got"):
            model(torch.empty(shape))


def test_attention_gates_show_four_maps_without_changing_the_logits() -> None:
    model, x = small_model("attention-unet")
    model.eval()
    with torch.inference_mode():
        logits, maps = model(x, return_attention=True)
        assert torch.equal(logits, model(x))
    assert [tuple(each.shape) for each in maps] == [(2, 1, side, side) for side in (6, 12, 24, 48)]
    assert all(each.min() > 0 and each.max() < 1 for each in maps)


def test_open_gates_make_it_the_improved_unet() -> None:
    model, x = small_model("attention-unet")
    other = build_model("improved-unet", filters=4, image_size=48)
    other.load_state_dict({key: value for key, value in model.state_dict().items() if "gates" not in key})
    for gate in model.gates:
        nn.init.zeros_(gate.to_map.weight)
        nn.init.constant_(gate.to_map.bias, 30.0)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), other.eval()(x))


def test_vit_attention_sums_to_one_without_changing_the_logits() -> None:
    model, x = small_model("vit")
    model.eval()
    with torch.inference_mode():
        logits, weights = model(x, return_attention=True)
        assert torch.equal(logits, model(x))
    assert [tuple(each.shape) for each in weights] == [(2, 8, 5, 5)] * 10
    torch.testing.assert_close(torch.stack(weights).sum(-1), torch.ones(10, 2, 8, 5))


def test_vit_layer_agrees_with_torchs_own() -> None:
    layer = build_model("vit", image_size=16).layers[0].eval()
    mish = nn.functional.mish
    torchs = nn.TransformerEncoderLayer(512, 8, 1024, 0.2, mish, batch_first=True, norm_first=True).eval()
    names = {
        "self_attn.in_proj_": "query_key_value.",
        "self_attn.out_proj.": "projection.",
        "norm1.": "attention_norm.",
        "norm2.": "feed_forward.0.",
        "linear1.": "feed_forward.1.",
        "linear2.": "feed_forward.4.",
    }
    state = layer.state_dict()
    torchs.load_state_dict({a + end: state[b + end] for a, b in names.items() for end in ("weight", "bias")})
    tokens = torch.randn(2, 7, 512)
    torch.testing.assert_close(layer(tokens)[0], torchs(tokens), rtol=1e-4, atol=1e-5)


def test_the_table_of_models_does_without_torch() -> None:
    code = (
        "import sys; from hpc_tumor.models import MODELS;"
        "print(*(f'{name}:{spec.task}:{spec.image_size}' for name, spec in MODELS.items()));"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "cnn:classification:128"
    assert done.stdout.split()[-1] == "attention-unet:segmentation:240"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BFLOAT16, reason="this CPU has no bfloat16 instructions")
def test_narrow_attention_gates_survive_bfloat16_training_on_a_cpu() -> None:
    """A 1×1 convolution of stride 2 on fewer than 16 channels corrupts memory there: the process must live."""
    program = """if True:
        import torch
        from hpc_tumor.models import build_model
        torch.set_num_threads(1)
        model = build_model("attention-unet", filters=8, image_size=96).to(memory_format=torch.channels_last)
        images = torch.randn(4, 4, 96, 96).contiguous(memory_format=torch.channels_last)
        for _ in range(12):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
            logits.float().square().mean().backward()
    """
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
