"""Operating system: atomic files, processes, CPUs and memory. Imported everywhere; imports only errors."""
