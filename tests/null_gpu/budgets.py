"""Limits of a training step: what the host may launch and copy, and what the kernels may read and write.

Counted with torch 2.14 and CUDA 13. The number of launches, counted on small batches, does not depend on the size of a
batch; a GPU waits for the host in a step with many of them. Bytes are those of the published recipe and batch. Change
these numbers only to lower them, or for another torch.
"""

from __future__ import annotations

import warnings

# By network, in bfloat16, float16 and float32.
STEP = {
    "cnn": (174, 166, 128),
    "alexnet": (142, 148, 112),
    "vgg16": (201, 207, 159),
    "vit": (716, 722, 499),
    "unet": (242, 248, 200),
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

# Megabytes (10⁶ bytes) that the kernels of a step of the published recipe read and write in bfloat16, by network:
# one by one, and compiled by Inductor. tools/roofline.py shows them by kernel.
MEGABYTES = {
    "cnn": 671,
    "alexnet": 405,
    "vgg16": 7861,
    "vit": 8040,
    "unet": 11973,
    "improved-unet": 17155,
    "attention-unet": 20688,
}
COMPILED_MEGABYTES = {
    "cnn": 785,
    "alexnet": 530,
    "vgg16": 9842,
    "vit": 6118,
    "unet": 14827,
    "improved-unet": 62362,
    "attention-unet": 63964,
}


def check_budget(name: str, used: int, budget: int, of: str = "launches and copies") -> None:
    """Fail if more was used than the budget of this name allows, and ask to lower it if it was less."""
    assert used <= budget, f"{name} in budgets.py allows {budget} {of}, but the step took {used}"
    if used < budget:
        warnings.warn(f"lower {name} in budgets.py from {budget} to {used}", stacklevel=2)
