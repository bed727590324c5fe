"""Say what is to be trained: options, job files and sweeps in, validated experiments out.

Imported by the command line only; imports settings, data.splits and models' registry, never torch."""
