"""Is this machine, this cluster, this GPU fit to run? Looked at here, and by a test job on a node."""
