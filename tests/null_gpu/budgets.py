"""Kernel launches and copies that the host may start in a training step, for the tests of steps and of ranks.

Counted with torch 2.14 and CUDA 13 on small batches; their number does not depend on the size of a batch. A GPU waits
for the host in a step with many of them: change these numbers only to lower them, or for another torch.
"""

from __future__ import annotations

import warnings

# By network, in bfloat16, float16 and float32.
STEP = {
    "cnn": (174, 166, 128),
    "alexnet": (165, 171, 125),
    "vgg16": (262, 268, 194),
    "vit": (716, 722, 499),
    "unet": (347, 353, 245),
    "improved-unet": (502, 508, 404),
    "attention-unet": (702, 708, 548),
}
# More with augmentation, by task, whatever is drawn.
AUGMENTATION = {"classification": 14, "segmentation": 32}
# More on each of two ranks, by network, in bfloat16: gradients go to DDP's buckets one by one.
RANKS = {
    "cnn": 71,
    "alexnet": 21,
    "vgg16": 38,
    "vit": 148,
    "unet": 40,
    "improved-unet": 292,
    "attention-unet": 316,
}


def check_budget(name: str, used: int, budget: int) -> None:
    """Fail if more was used than the budget of this name allows, and ask to lower it if it was less."""
    assert used <= budget, f"{name} in budgets.py allows {budget} launches and copies, but the step took {used}"
    if used < budget:
        warnings.warn(f"lower {name} in budgets.py from {budget} to {used}", stacklevel=2)
