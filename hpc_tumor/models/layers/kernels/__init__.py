"""Triton kernels for NVIDIA GPUs as operations of torch, for layers that would otherwise move more bytes.

Activations come in channels-last and go out so. Only modules of operations are imported by the layers: those with
kernels import triton, and are loaded by the first call. Imported by the rest of models/.
"""
