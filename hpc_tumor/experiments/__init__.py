"""Say what is to be trained: a network, options and job files in, validated experiments out.

Imported by the command line; imports settings, the names of networks and splits, and never loads torch.
"""
