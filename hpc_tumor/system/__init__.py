"""Operating system and hardware: atomic files, processes, CPUs, memory, GPUs. Imported everywhere, imports errors."""
