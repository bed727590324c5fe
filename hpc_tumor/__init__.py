"""hpc-tumor: train and compare brain-tumour networks, from raw scans to a table that a reviewer trusts."""

__version__ = "0.1.0"
