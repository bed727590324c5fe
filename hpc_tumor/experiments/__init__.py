"""Turn options and job files into validated experiments. Never loads torch. Imported by cli/."""
