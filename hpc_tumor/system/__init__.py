"""Meet the operating system: complete files, processes, signals, memory. No module here knows what is trained."""
