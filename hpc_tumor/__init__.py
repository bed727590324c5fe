"""Train and compare brain-tumour networks, from raw scans to tables and a report.

    raw scans → data/ → store → models/, training/ → run directory → results/ → tables and report
                 experiments/: what to run, cluster/: where to run it, cli/: commands and their output

The docstring of each folder states its inputs, outputs and importers; tests/test_walls.py enforces the layers.
Planned: a Python interface as `api`, a search of settings as `search/` above cluster/, 3-D data in data/feed/.
"""

__version__ = "0.1.0"
