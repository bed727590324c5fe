"""Triton kernels for NVIDIA GPUs as operations of torch, for layers that would otherwise move more bytes.

Activations come in channels-last and go out so. Only `operations` is imported by the layers: modules with kernels
import triton, and are loaded by the first call. Imported by the rest of models/.
"""
