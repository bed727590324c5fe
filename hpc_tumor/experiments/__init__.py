"""Turn options and job files into validated experiments. Imported by the command line; never loads torch."""
