"""Meet the operating system: files that appear whole or not at all, processes, CPUs and memory.

In: paths and commands. Out: the same, done safely. Imported by every other room; imports nothing but errors.
"""
