"""Limits of a training step: what the host may launch and copy, and what the kernels may read and write.

Counted with torch 2.14 and CUDA 13. The number of launches, counted on small batches, does not depend on the size of a
batch; a GPU waits for the host in a step with many of them. Bytes are those of the published recipe and batch. Change
these numbers only to lower them, or for another torch.
"""

from __future__ import annotations

import warnings

# By network, in bfloat16, float16 and float32.
STEP = {
    "cnn": (168, 160, 128),
    "alexnet": (132, 138, 110),
    "vgg16": (191, 197, 157),
    "vit": (634, 640, 499),
    "unet": (238, 244, 198),
    "improved-unet": (466, 472, 388),
    "attention-unet": (642, 648, 516),
}
# More with augmentation, by task, whatever is drawn.
AUGMENTATION = {"classification": 14, "segmentation": 32}
# More on each of two ranks, by network, in bfloat16: gradients go to DDP's buckets one by one.
RANKS = {
    "cnn": 71,
    "alexnet": 21,
    "vgg16": 37,
    "vit": 148,
    "unet": 40,
    "improved-unet": 310,
    "attention-unet": 334,
}
# Operations of the host in a step that is replayed as a CUDA graph, with augmentation and samples kept on the GPU, and
# the kernels and copies in the graph, by network, in bfloat16.
GRAPH = {
    "cnn": (5, 179),
    "alexnet": (3, 143),
    "vgg16": (5, 202),
    "vit": (5, 645),
    "unet": (3, 267),
    "improved-unet": (3, 495),
    "attention-unet": (3, 671),
}
# Kernels in the graph on each of two ranks, without augmentation.
GRAPH_RANKS = {
    "cnn": 236,
    "alexnet": 151,
    "vgg16": 226,
    "vit": 779,
    "unet": 276,
    "improved-unet": 774,
    "attention-unet": 974,
}

# Megabytes (10⁶ bytes) that the kernels of a step of the published recipe read and write in bfloat16, by network:
# one by one, and compiled by Inductor. tools/roofline.py shows them by kernel.
MEGABYTES = {
    "cnn": 669,
    "alexnet": 402,
    "vgg16": 7130,
    "vit": 7956,
    "unet": 11511,
    "improved-unet": 17155,
    "attention-unet": 20688,
}
COMPILED_MEGABYTES = {
    "cnn": 783,
    "alexnet": 418,
    "vgg16": 7151,
    "vit": 6109,
    "unet": 10467,
    "improved-unet": 21663,
    "attention-unet": 23767,
}


def check_budget(name: str, used: int, budget: int, of: str = "launches and copies") -> None:
    """Fail if more was used than the budget of this name allows, and ask to lower it if it was less."""
    assert used <= budget, f"{name} in budgets.py allows {budget} {of}, but the step took {used}"
    if used < budget:
        warnings.warn(f"lower {name} in budgets.py from {budget} to {used}", stacklevel=2)
