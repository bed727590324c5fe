"""Optimizers and the choice of precision."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from hpc_tumor.config import Recipe
from hpc_tumor.errors import UsageError
from hpc_tumor.training import recipe


def test_fused_adam_steps_like_the_textbook_with_l2() -> None:
    weights = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = recipe.build_optimizer([weights], Recipe(learning_rate=0.1, weight_decay=0.5))
    weights.grad = torch.tensor([0.3, 0.3])
    optimizer.step()
    # After bias correction Adam's first step is the sign of (gradient + decay × weight) times the rate.
    assert weights.tolist() == pytest.approx([0.9, -1.9], abs=1e-4)


@pytest.mark.slow
def test_steps_and_checkpoints_do_not_import_the_compiler() -> None:
    """Its 800 files would cost each rank a second of CPU time, and more on a parallel file system."""
    code = (
        "import sys, torch; from hpc_tumor.config import Recipe; from hpc_tumor.training import loop, recipe\n"
        "for name in ('adam', 'adamw', 'sgd'):\n"
        "    weights = torch.ones(2, requires_grad=True); (weights * weights).sum().backward()\n"
        "    optimizer = recipe.build_optimizer([weights], Recipe(optimizer=name))\n"
        "    optimizer.step(); optimizer.load_state_dict(optimizer.state_dict()); optimizer.zero_grad()\n"
        "    assert not torch.equal(weights, torch.ones(2))\n"
        "sys.exit(f'loaded {bad}' if (bad := {'torch._dynamo', 'triton', 'scipy.spatial'} & set(sys.modules)) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16"])
def test_precision_is_what_the_hardware_computes_in(monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    capabilities = {"avx2": True, feature: False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert recipe.choose_precision("auto", torch.device("cpu")).name == "float32"
    with pytest.raises(UsageError, match="does not support it"):
        recipe.choose_precision("bfloat16", torch.device("cpu"))
    capabilities[feature] = True
    assert recipe.choose_precision("auto", torch.device("cpu")).name == "bfloat16"
    assert recipe.choose_precision("float32", torch.device("cpu")).name == "float32"


@pytest.mark.parametrize(
    ("capability", "name", "scaled"),
    [((7, 0), "float16", True), ((8, 0), "bfloat16", False), ((9, 0), "bfloat16", False), ((6, 1), "float32", False)],
)
def test_precision_of_gpus(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str, scaled: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen = recipe.choose_precision("auto", torch.device("cuda", 0))
    assert chosen.name == name
    assert (chosen.name == "float16") == scaled
