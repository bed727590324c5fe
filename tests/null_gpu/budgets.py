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
    "improved-unet": (772, 724, 476),
    "attention-unet": (972, 924, 620),
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
# Operations of the host in a step that is replayed as a CUDA graph, with augmentation and samples kept on the GPU, and
# the kernels and copies in the graph, by network, in bfloat16.
GRAPH = {
    "cnn": (5, 185),
    "alexnet": (3, 176),
    "vgg16": (5, 273),
    "vit": (5, 727),
    "unet": (3, 376),
    "improved-unet": (3, 801),
    "attention-unet": (3, 1001),
}
# Kernels in the graph on each of two ranks, without augmentation.
GRAPH_RANKS = {
    "cnn": 242,
    "alexnet": 184,
    "vgg16": 298,
    "vit": 861,
    "unet": 385,
    "improved-unet": 1062,
    "attention-unet": 1286,
}


def check_budget(name: str, used: int, budget: int) -> None:
    """Fail if more was used than the budget of this name allows, and ask to lower it if it was less."""
    assert used <= budget, f"{name} in budgets.py allows {budget} launches and copies, but the step took {used}"
    if used < budget:
        warnings.warn(f"lower {name} in budgets.py from {budget} to {used}", stacklevel=2)
