"""Train and compare brain-tumour networks, from raw scans to a table that a reviewer trusts.

    raw scans → data/ → store → models/, training/ → run directory → results/ → tables and report
                 experiments/ says what, cluster/ says where, cli/ is all that a person types and sees

Each folder says what comes in, what goes out and who may import it; tests/test_walls.py holds the walls. Rooms to come:
the Python side as `api`, a search of settings as `search/` above cluster/, any network in models/, 3-D in data/feed/.
"""

__version__ = "0.1.0"
