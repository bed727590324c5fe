"""Kernel launches and copies of a training step that the host may start: `test_steps.py` compares.

Counted with torch 2.14 and CUDA 13 on small batches; their number does not depend on the size of a batch. A GPU waits
for the host in a step with many of them: change these numbers only to lower them, or for another torch.
"""

from __future__ import annotations

# By network, in bfloat16, float16 and float32.
STEP = {
    "cnn": (176, 168, 130),
    "alexnet": (167, 173, 127),
    "vgg16": (264, 270, 196),
    "vit": (718, 724, 501),
    "unet": (348, 354, 246),
    "improved-unet": (773, 725, 477),
    "attention-unet": (973, 925, 621),
}
# More with augmentation, by task, whatever is drawn.
AUGMENTATION = {"classification": 14, "segmentation": 32}
